"""Settings of marketing's two processes."""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from chassis.config import Port, ServiceSettings

#: How long touches are kept unless the settings say otherwise: the longest span of a profit report, days.
TOUCHES_DAYS = 400.0


class MarketingSettings(ServiceSettings):
    """Beside the common ones: how offers are ranked and how fresh that is."""

    model_config = SettingsConfigDict(env_prefix="MARKETING_")

    service: str = Field(default="marketing", description="Name of the service.")
    grpc_port: Port = Field(default=7160, description="Port that gRPC listens on.")
    http_port: Port = Field(default=7161, description="Port of /metrics, /healthz and /readyz.")
    currency: str = Field(
        default="CNY",
        pattern="^[A-Z]{3}$",
        description="Currency that offers are valued in; others are refused: they could not be compared.",
    )
    decision_minutes: float = Field(
        default=30.0, gt=0, le=10_080, description="How long a ranking may be shown, business minutes."
    )
    catalogue_seconds: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="How old the ranked catalogue and model may grow before they are read again, seconds.",
    )
    catalogue_stale_seconds: float = Field(
        default=30.0,
        gt=0,
        le=600,
        description="How old they may grow while reading fails; then recommending is UNAVAILABLE, seconds.",
    )
    holdout_ratio: float = Field(
        default=0.02,
        ge=0.001,
        le=0.5,
        description="Share of the customers to whom nothing is offered, until a policy is set.",
    )
    exploration_ratio: float = Field(
        default=0.05, ge=0, le=0.5, description="Share of decisions spent on learning, until a policy is set."
    )
    fatigue_offers_max: int = Field(
        default=10,
        ge=0,
        le=1_000,
        description="Contacts with offers for one customer in 7 days, until a policy is set; 0 is no limit.",
    )
    learn_seconds: float = Field(
        default=300.0,
        gt=0,
        le=3600,
        description="How often the worker looks for outcomes that the propensity model learns, seconds.",
    )
    senders: str = Field(
        default="[]",
        description="Senders: a JSON list of objects with id, channel, adapter (smtp or webhook), target, and"
        " what logs in (docs/marketing.md).",
    )
    calls_queue: str = Field(
        default="callout",
        max_length=128,
        description="Queue whose agents call the lists that campaigns fill (the dialler's `outbound`);"
        " empty leaves it open.",
    )
    campaign_seconds: float = Field(
        default=1.0, gt=0, le=600, description="Pause of the campaign runner when nothing is due, seconds."
    )
    touches_days: float = Field(
        default=TOUCHES_DAYS,
        ge=365,
        le=36_500,
        description="How long touches are kept after their campaign is over (calls outside campaigns: after"
        " the call), business days: at least as long as a frequency cap may count. Reports over longer spans"
        " say so.",
    )
    stranger_numbers_days: float = Field(
        default=30.0,
        ge=7,
        le=3_650,
        description="How long a decision keeps the number of a caller who is no customer, and the note on its"
        " outcome, business days: at least as long as a ranking may be shown.",
    )
    holiday_country: str = Field(
        default="CN",
        description="Country, or country and part (US-CA), whose public holidays are quiet where the contact "
        "policy says that holidays are.",
    )
    smoothing_strength: float = Field(
        default=20.0, gt=0, le=10_000, description="Imagined average customers behind each estimate."
    )
    smoothing_rate: float = Field(
        default=0.01, gt=0, lt=1, description="Base rate of a product of which nothing is known."
    )
    build_seconds: float = Field(
        default=5.0,
        gt=0,
        le=3600,
        description="How often the worker looks whether the history changed and a model is due, seconds.",
    )
    build_share_max: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Largest share of its time that the worker spends on building models.",
    )
    models_kept: int = Field(default=5, ge=2, le=50, description="Model versions kept for a rollback.")
    claim_seconds: float = Field(
        default=60.0,
        ge=1,
        le=3600,
        description="Age at which stock taken for an outcome that was never recorded is given back, seconds.",
    )
    sweep_seconds: float = Field(
        default=5.0, gt=0, le=600, description="How often the worker finishes what a crash left half done."
    )

    @field_validator("holiday_country")
    @classmethod
    def _known_country(cls, text: str) -> str:
        from marketing.holiday import holidays_of

        holidays_of(text)
        return text

    @field_validator("senders")
    @classmethod
    def _known_senders(cls, text: str) -> str:
        from marketing.senders import read_configs

        read_configs(text)
        return text
