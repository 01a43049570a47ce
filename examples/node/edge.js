// An edge in Node.js, from the .proto files alone: places a call, confirms, hangs up, and reads what the platform says
// about it. Shows what any gRPC client does with callmesh: rich errors, the caller's language, streams, a cursor.
//
//   node edge.js --routing 127.0.0.1:7320 --queue queues/sandbox --number +861064000000 \
//     --protos ../../proto --protos ../../build/proto-deps --token-file ../../.run-sandbox-keys/partner.token
//
// Prints one JSON object a line; exit status 0 when the call was completed and its events were read.
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const { setTimeout: pause } = require('timers/promises');
const { parseArgs } = require('util');

const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const protobuf = require('protobufjs');

const DEADLINE_MS = 5000;
const CONFIRM_TRIES_MAX = 5;
const CONFIRM_PAUSE_MS = 100;
const EVENTS_MAX = 10000;

const { values: options } = parseArgs({
  options: {
    routing: { type: 'string' },
    queue: { type: 'string' },
    number: { type: 'string', default: '' },
    protos: { type: 'string', multiple: true },
    'token-file': { type: 'string', default: '' },
  },
});

const say = (facts) => console.log(JSON.stringify(facts));

const definition = loader.loadSync(
  ['callmesh/routing/v1/routing.proto', 'callmesh/common/v1/event_service.proto'],
  { includeDirs: options.protos, keepCase: true, longs: String, enums: String, defaults: true, oneofs: true },
);
const callmesh = grpc.loadPackageDefinition(definition).callmesh;
const credentials = grpc.credentials.createInsecure();
const routing = new callmesh.routing.v1.RoutingService(options.routing, credentials);
const events = new callmesh.common.v1.EventService(options.routing, credentials);

// google.rpc's messages travel inside the trailer `grpc-status-details-bin`.
const root = new protobuf.Root();
root.resolvePath = (_, target) =>
  options.protos.map((folder) => `${folder}/${target}`).find((path) => fs.existsSync(path)) || target;
root.loadSync(['google/rpc/error_details.proto', 'google/rpc/status.proto'], { keepCase: true });

function decode(name, bytes) {
  return root.lookupType(name).decode(bytes);
}

function metadata() {
  const made = new grpc.Metadata();
  made.set('accept-language', 'zh-CN');
  if (options['token-file']) {
    made.set('authorization', `Bearer ${fs.readFileSync(options['token-file'], 'utf8').trim()}`);
  }
  return made;
}

// What an error says to a program, and to a person.
function facts(error) {
  const found = { code: grpc.status[error.code], reason: grpc.status[error.code], text: error.details, fields: [] };
  for (const raw of error.metadata ? error.metadata.get('grpc-status-details-bin') : []) {
    for (const any of decode('google.rpc.Status', raw).details) {
      const name = any.type_url.split('/').pop();
      if (name === 'google.rpc.ErrorInfo') {
        found.reason = decode(name, any.value).reason;
      } else if (name === 'google.rpc.LocalizedMessage') {
        found.text = decode(name, any.value).message;
      } else if (name === 'google.rpc.BadRequest') {
        found.fields = decode(name, any.value).field_violations.map((violation) => violation.field);
      }
    }
  }
  return found;
}

function unary(client, method, request) {
  return new Promise((resolve, reject) => {
    const deadline = new Date(Date.now() + DEADLINE_MS);
    client[method](request, metadata(), { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

// ConfirmCall is idempotent: it is repeated until there is a yes or a no.
async function confirm(callId, event) {
  const request = {
    call_id: callId,
    offer_id: event.accepted.offer_id,
    version: event.version,
    shard: event.shard,
  };
  for (let turn = 1; ; turn += 1) {
    try {
      return await unary(routing, 'ConfirmCall', request);
    } catch (error) {
      if (error.code !== grpc.status.UNAVAILABLE || turn === CONFIRM_TRIES_MAX) throw error;
      await pause(CONFIRM_PAUSE_MS * turn);
    }
  }
}

async function place(callId) {
  const call = { call_id: callId, caller_number: options.number, queue: options.queue, attempt: 1 };
  const stream = routing.RouteCall({ call }, metadata());
  for await (const event of stream) {
    say({ event: event.event });
    if (event.event === 'accepted') {
      const answer = await confirm(callId, event);
      say({ event: 'confirmation', confirmed: answer.confirmed, refusal: answer.refusal });
    } else if (event.event === 'connected') {
      const ended = await unary(routing, 'HangUp', { call_id: callId, attempt: 1, shard: event.shard });
      return ended.outcome;
    } else if (event.event === 'ended') {
      return event.ended.outcome;
    }
  }
  return 'STREAM_OVER';
}

// From the cursor on, until the call's end was told; the cursor could be stored and used by another process.
async function readUntilEnd(cursor, callId) {
  const stream = events.Subscribe({ cursor, types: ['callmesh.routing.v1.CallEnded'] }, metadata());
  let seen = 0;
  for await (const message of stream) {
    if (message.message === 'event') {
      seen += 1;
      if (JSON.parse(message.event.data).call.callId === callId) {
        stream.cancel();
        return { cursor: message.cursor, type: message.event.type };
      }
    }
    if (seen > EVENTS_MAX) break;
  }
  throw new Error('the end of the call was not told');
}

async function main() {
  // A refusal names its reason and field, in Chinese because that was asked for.
  try {
    await unary(routing, 'GetCall', { name: 'nonsense' });
  } catch (error) {
    say({ refused: facts(error) });
  }
  const { next_cursor: cursor } = await unary(events, 'ListEvents', { start: 'EVENT_START_NOW' });
  const callId = `node-${crypto.randomUUID()}`;
  const outcome = await place(callId);
  say({ told: await readUntilEnd(cursor, callId) });
  say({ call: callId, outcome });
  return outcome === 'CALL_OUTCOME_COMPLETED' ? 0 : 1;
}

main()
  .then((status) => process.exit(status))
  .catch((error) => {
    say({ error: error.code === undefined ? { text: String(error) } : facts(error) });
    process.exit(1);
  });
