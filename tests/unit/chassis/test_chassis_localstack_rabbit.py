"""A broker that does not answer its own command ends a start with one line, and in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from chassis.localstack import ProcessFailed, RabbitNode, rabbit


def test_a_node_that_does_not_answer_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = tmp_path / "rabbitmqctl"
    control.write_text("#!/bin/sh\nexec sleep 60\n")
    control.chmod(0o755)
    monkeypatch.setattr(rabbit, "find_rabbitmq_server", lambda: str(tmp_path / "rabbitmq-server"))
    monkeypatch.setattr(rabbit, "CONTROL_SECONDS_MAX", 0.1)
    node = RabbitNode(tmp_path / "run", 5672)
    with pytest.raises(ProcessFailed) as failed:
        node.wake_queues()
    (line,) = str(failed.value).splitlines()
    assert "rabbitmqctl" in line and "0.1 s" in line and "rabbitmq.log" in line
