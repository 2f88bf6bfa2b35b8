/** A whole client against session servers that the test plays: the stories of `client/tests/scripted_server.rs`. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  all,
  ArgumentError,
  CallUndecidedError,
  type Client,
  ClosedError,
  connect,
  field,
  LeftError,
  NoServerError,
  RefusedError,
  type Room,
  type Status,
  UndecidedError,
  type Watch,
  type WatchEvent,
} from "../src/index.js";
import { checksum } from "../src/delta.js";
import { decode, encode } from "../src/msgpack.js";
import { kinds } from "../src/wire.js";
import { ARENA, joined, Network, type Peer, Queue, soon, turn, URL_A, URL_B } from "./server.js";

/** A delta that inserts the whole target. */
function whole(target: unknown): string {
  const bytes = encode(target);
  const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";
  const number = (value: number): string => (value < 64 ? "" : number(Math.floor(value / 64))) + digits[value % 64];
  return `${number(bytes.length)}\n${number(bytes.length)}:${Buffer.from(bytes).toString("latin1")}${number(checksum(bytes))};`;
}

/** Messages of a room, one after the other. */
function messages(room: Room): Queue<unknown> {
  const queue = new Queue<unknown>();
  room.onMessage((message) => queue.push(message));
  return queue;
}

function statuses(client: Client): Queue<Status> {
  const queue = new Queue<Status>();
  client.on("status", (status) => queue.push(status));
  return queue;
}

const fails = (promise: Promise<unknown>, kind: new (...a: any[]) => Error, code: string): Promise<void> =>
  soon(
    "a refusal",
    assert.rejects(promise, (error: any) => {
      assert.ok(error instanceof kind, String(error));
      assert.equal((error as unknown as { code: string }).code, code);
      assert.equal(error.name, kind.name);
      return true;
    }),
  );

test("the list is walked until a server answers, and the list learned there is kept and tried first", async () => {
  const network = new Network();
  const kept = new Map<string, string>();
  const shared = {
    getItem: (name: string) => kept.get(name) ?? null,
    setItem: (name: string, value: string) => void kept.set(name, value),
    removeItem: (name: string) => void kept.delete(name),
  };
  network.dead.add(URL_A);
  const servers = [URL_A, URL_B];
  const connecting = connect(network.options({ servers, storage: { shared } }));
  const peer = await network.accept();
  assert.deepEqual([peer.address, peer.protocol], [URL_B, "greenroom.v1"]);
  const checkIn = await peer.checkIn(undefined, ["ws://c.example:3", "wss://d.example:4", "tcp://e.example:5", "nonsense"]);
  assert.equal(checkIn.credentials.scheme, "guest");
  assert.match(checkIn.credentials.token, /^[0-9a-f]{32}$/);
  assert.equal(checkIn.session_key.length, 16);
  const client = await soon("the check-in", connecting);
  assert.deepEqual([client.user, client.name, client.status, client.server], ["guest-ann", "Ann", "live", URL_B]);
  await client.close();

  network.dialled.length = 0;
  const again = connect(network.options({ servers, storage: { shared } }));
  await (await network.accept()).checkIn();
  await (await soon("the check-in", again)).close();
  assert.deepEqual(network.dialled, ["ws://c.example:3/"]);
});

test("who gets in nowhere is told the reason of every address", async () => {
  const network = new Network();
  network.dead.add(URL_A);
  const connecting = connect(network.options({ servers: [URL_A, URL_B], connectMs: 400, attemptMs: 100 }));
  const told = soon(
    "the reasons",
    assert.rejects(connecting, (error: unknown) => {
      assert.ok(error instanceof NoServerError);
      assert.equal(error.code, "no_server");
      const reasons = new Map(error.attempts.map(({ address, reason }) => [address, reason]));
      assert.match(reasons.get(URL_A)!, /nobody listens/);
      assert.match(reasons.get(URL_B)!, /busy|no answer|connection/);
      return true;
    }),
  );
  for (let count = 0; count < 2; count++) {
    const peer = await network.accept();
    await peer.until(kinds.hello);
    peer.closing("busy");
  }
  await told;
});

test("wrong credentials end the walk at once, and say so", async () => {
  for (const code of ["credentials_invalid", "token_expired", "scheme_unknown", "forbidden"]) {
    const network = new Network();
    const auth = { scheme: "jwt", token: "not a token" };
    const connecting = connect(network.options({ servers: [URL_A, URL_B], auth }));
    const peer = await network.accept();
    await peer.until(kinds.checkIn);
    peer.hello();
    peer.closing(code);
    await fails(connecting, RefusedError, code);
    await peer.closed();
    assert.equal(network.dialled.length, 1);
  }
});

test("where every server speaks another version, that is the error, and one that does not is found", async () => {
  const network = new Network();
  const connecting = connect(network.options({ servers: [URL_A, URL_B] }));
  for (let count = 0; count < 2; count++) {
    const peer = await network.accept();
    await peer.until(kinds.hello);
    peer.closing("version_mismatch");
  }
  await fails(connecting, RefusedError, "version_mismatch");

  const second = connect(network.options({ servers: [URL_A, URL_B] }));
  const old = await network.accept();
  await old.until(kinds.hello);
  old.closing("version_mismatch");
  await (await network.accept()).checkIn();
  await (await soon("the check-in", second)).close();

  const third = connect(network.options());
  const liar = await network.accept();
  liar.say(kinds.serverHello, { protocol: 2, features: [], agent: "", heartbeat_ms: 1000 });
  await liar.closed();
  await (await network.accept()).checkIn();
  await (await soon("the check-in", third)).close();
});

test("settings that can't be used are refused before anything is dialled", async () => {
  const network = new Network();
  for (const servers of [[], ["http://a.example"], ["tcp://a.example:1"], ["a.example"], ["ws://"], [`ws://a.example#x`]]) {
    await fails(connect(network.options({ servers })), ArgumentError, "argument_invalid");
  }
  const auth = { scheme: "jwt", token: "x".repeat(5000) };
  await fails(connect(network.options({ auth })), RefusedError, "credentials_invalid");
  assert.deepEqual(network.dialled, []);
});

test("a token that is asked for is a fresh one at each check-in", async () => {
  const network = new Network();
  let count = 0;
  const token = async (): Promise<string> => {
    count += 1;
    if (count === 2) throw new Error("the studio's service is away");
    return `token ${count}`;
  };
  const auth = { scheme: "jwt", token };
  const connecting = connect(network.options({ auth }));
  const peer = await network.accept();
  assert.equal((await peer.checkIn()).credentials.token, "token 1");
  const client = await soon("the check-in", connecting);
  peer.drop();
  // What can't be had at once is asked for again.
  assert.equal((await (await network.accept()).checkIn()).credentials.token, "token 3");
  await client.close();
});

test("calls and queries are answered and refused with the game's own words", async () => {
  const [client, room, peer] = await new Network().seated();
  const first = room.call({ Buy: "boots" });
  const second = room.call("Dance");
  const third = room.query("Score");
  const fourth = room.query("Secret");
  const [one, two, three, four] = [await peer.up(), await peer.up(), await peer.up(), await peer.up()];
  assert.deepEqual([one.kind, one.number, one.channel, decode(one.payload)], [kinds.call, 1, 7, { Buy: "boots" }]);
  assert.deepEqual([two.number, three.kind, three.number, four.number], [2, kinds.query, 1, 2]);
  // In another order than they were asked.
  peer.answer(kinds.replyRefused, 1, 2, 2, { code: "rejected", message: "nobody dances here" });
  peer.answer(kinds.reply, 2, 2, 1, { Bought: 70 });
  peer.down(kinds.queryRefused, 2, 2, encode({ code: "rejected", message: "no" }));
  peer.down(kinds.queryReply, 1, 2, encode(12));
  await fails(second, RefusedError, "rejected");
  await fails(fourth, RefusedError, "rejected");
  assert.deepEqual(await first, { Bought: 70 });
  assert.equal(await third, 12);
  assert.equal(room.unacknowledged, 0);

  const refused = new Promise((resolve) => room.onRefused((number, refusal) => resolve([number, refusal.code])));
  assert.equal(room.send("Nonsense"), 3);
  await peer.up();
  peer.answer(kinds.replyRefused, 3, 3, 3, { code: "message_unknown", message: "no such message" });
  assert.deepEqual(await soon("the refusal", refused), [3, "message_unknown"]);
  await client.close();
});

test("a call without a reply in time is undecided, and a query unavailable", async () => {
  const [client, room, peer] = await new Network().seated({ requestMs: 60 });
  const call = room.call("Wait");
  const query = room.query("Wait");
  await fails(call, CallUndecidedError, "undecided");
  await assert.rejects(query, { name: "UnavailableError", code: "unavailable" });
  peer.answer(kinds.reply, 1, 1, 1, "late");
  peer.event(2, "and on");
  assert.equal(await messages(room).next("a message"), "and on");
  await client.close();
});

test("a view is put together and patched, and what is different is told once", async () => {
  const [client, room, peer] = await new Network().seated();
  const told: unknown[] = [];
  const states = new Queue<number>();
  room.onAdd("players", (player, key) => told.push(["add", key, player]));
  const stop = room.onChange("players", (player, key, before) => told.push(["change", key, before, player]));
  room.onRemove("players", (player, key) => told.push(["remove", key, player]));
  room.onState((_, tick) => states.push(tick));
  assert.equal(room.state, undefined);
  const state = { round: 1, players: { 0: { x: 1 }, 1: { x: 2 } } };
  const bytes = encode(state);
  peer.piece(4, 0, bytes, 5);
  peer.patch(4, 5, whole({ round: 1, players: { 0: { x: 1 }, 1: { x: 3 } } })); // Waits for the snapshot.
  peer.piece(4, 5, bytes);
  await states.next("a state");
  assert.deepEqual(room.state, { round: 1, players: { 0: { x: 1 }, 1: { x: 3 } } });
  assert.deepEqual(told.splice(0), [
    ["add", "0", { x: 1 }],
    ["add", "1", { x: 3 }],
  ]);
  peer.patch(5, 6, whole({ round: 2, players: { 1: { x: 4 }, 2: { x: 9 } } }));
  await states.next("a state");
  assert.deepEqual(told.splice(0), [
    ["add", "2", { x: 9 }],
    ["change", "1", { x: 3 }, { x: 4 }],
    ["remove", "0", { x: 1 }],
  ]);
  peer.patch(5, 6, whole("twice")); // It came before.
  stop();
  peer.patch(6, 7, whole({ round: 3, players: { 1: { x: 5 }, 2: { x: 9 } } }));
  await states.next("a state");
  assert.deepEqual(told, []);
  // Whoever comes late is told what is there.
  const late: unknown[] = [];
  room.onAdd("players", (_, key) => late.push(key));
  room.onAdd("players", () => late.push("never"))();
  room.onState((there) => late.push(there.round));
  await turn();
  assert.deepEqual(late, ["1", "2", 3]);
  // The seat's own view is another one.
  const own = new Promise((resolve) => room.onPrivateState((seen) => resolve(seen)));
  peer.snapshot(1, { hand: ["ace"] }, 0x8003);
  assert.deepEqual(await soon("the seat's own view", own), { hand: ["ace"] });
  assert.deepEqual(room.privateState, { hand: ["ace"] });
  assert.deepEqual(room.state, { round: 3, players: { 1: { x: 5 }, 2: { x: 9 } } });
  await client.close();
});

test("a patch that does not fit is healed by one snapshot", async () => {
  const [client, room, peer] = await new Network().seated();
  const states = new Queue<unknown>();
  room.onState((state) => states.push(state));
  peer.snapshot(1, "one");
  assert.equal(await states.next("a state"), "one");
  peer.patch(2, 3, whole("three")); // Version 2 is missing.
  peer.patch(3, 4, whole("four"));
  const need = await peer.up();
  assert.equal(need.kind, kinds.needSnapshot);
  assert.deepEqual(decode(need.payload), { view: 0, version: 1, reason: "patch 2 to 3 does not fit version 1" });
  assert.ok(await peer.isSilent(), "one snapshot is enough");
  peer.snapshot(3, "three");
  assert.equal(await states.next("a state"), "four");
  // A damaged one: its checksum is another.
  peer.patch(4, 5, whole("five").replace("five", "fife"));
  assert.match((decode((await peer.up()).payload) as { reason: string }).reason, /checksum/);
  peer.snapshot(5, "five");
  assert.equal(await states.next("a state"), "five");
  assert.equal(client.stats.desyncs, 2);
  await client.close();
});

test("what comes twice is given once, and what never comes is told", async () => {
  const [client, room, peer] = await new Network().seated();
  const missed = new Promise((resolve) => room.onMissed(resolve));
  peer.event(1, "a");
  peer.event(1, "a");
  peer.event(2, "b");
  peer.event(1, "a");
  peer.event(5, "e");
  const told = messages(room);
  assert.deepEqual([await told.next("a"), await told.next("b"), await told.next("e")], ["a", "b", "e"]);
  assert.equal(await soon("the gap", missed), 2);
  assert.deepEqual([client.stats.duplicatesDropped, client.stats.missed], [2, 2]);
  const ack = await peer.until(kinds.ack);
  assert.equal(new DataView(ack.buffer).getUint32(9, true), 5);
  await client.close();
});

test("messages are acknowledged after sixteen of them without waiting", async () => {
  const [client, , peer] = await new Network().seated();
  const began = performance.now();
  for (let number = 1; number <= 16; number++) peer.event(number, number);
  const ack = await peer.until(kinds.ack);
  assert.equal(new DataView(ack.buffer).getUint32(9, true), 16);
  assert.ok(performance.now() - began < 5000);
  await client.close();
});

test("messages from before somebody listens wait, and the oldest give way when there are too many", async () => {
  const [client, room, peer] = await new Network().seated();
  for (let number = 1; number <= 300; number++) peer.event(number, number);
  await peer.until(kinds.ack);
  while (client.stats.messages < 300) await turn();
  const told: unknown[] = [];
  room.onMessage((message) => told.push(message));
  await turn();
  assert.deepEqual([told.length, told[0], told.at(-1)], [256, 45, 300]);
  assert.equal(client.stats.unheard, 44);
  await client.close();
});

test("a lost connection is replaced, both streams go on, and requests are asked again with their ids", async () => {
  const network = new Network();
  const [client, room, peer] = await network.seated({ servers: [URL_A, URL_B] });
  const status = statuses(client);
  const told = messages(room);
  room.send("one");
  const call = room.call("two");
  const query = room.query("three");
  const creating = client.create("echo", { key: "k" });
  await peer.up();
  peer.event(1, "a", 1);
  assert.equal(await told.next("a"), "a");
  peer.drop();
  assert.equal(await status.next("the loss"), "resuming");
  assert.equal(client.status, "resuming");
  room.send("four"); // Sent when there is a connection again.

  const other = await network.accept();
  assert.notEqual(other.address, peer.address, "the server that was lost comes last");
  await other.checkIn();
  const create = await other.request();
  assert.deepEqual([create.kind, create.id, create.fields.key], [kinds.create, 2, "k"]);
  const rejoin = await other.request();
  assert.deepEqual([rejoin.kind, rejoin.id, rejoin.fields.instance], [kinds.join, 3, ARENA]);
  assert.equal(client.status, "resuming");
  other.reply(2, kinds.created, { instance: "another" });
  assert.equal(await creating, "another");
  other.reply(3, kinds.joined, joined(1, 1, { channel: 9 }));
  const ups = [await other.up(), await other.up(), await other.up()];
  assert.deepEqual(
    ups.map(({ channel, kind, number, ack, payload }) => [channel, kind, number, ack, decode(payload)]),
    [
      [9, kinds.call, 2, 1, "two"],
      [9, kinds.message, 3, 1, "four"],
      [9, kinds.query, 1, 1, "three"],
    ],
  );
  assert.equal(await status.next("the end of it"), "resumed");
  other.down(kinds.event, 1, 1, encode("a"), 9, 9); // It has come before.
  other.down(kinds.event, 2, 3, encode("b"), 9, 9);
  assert.equal(await told.next("b"), "b");
  other.down(kinds.reply, 3, 3, Buffer.from("02000000a2746f", "hex"), 9, 9);
  assert.equal(await call, "to");
  other.down(kinds.queryReply, 1, 3, encode("tre"), 9, 9);
  assert.equal(await query, "tre");
  assert.equal(client.stats.reconnects, 1);
  assert.equal(told.length, 0);
  await client.close();
});

test("a seat that is gone after a reconnect ends its room with the reason", async () => {
  const network = new Network();
  const [client, room, peer] = await network.seated();
  const left = new Promise<string>((resolve) => room.onLeave(({ code }) => resolve(code)));
  const call = room.call("x");
  peer.drop();
  const other = await network.accept();
  await other.checkIn();
  const busy = await other.request();
  other.refuse(busy.id, "busy"); // Passes: it is asked again.
  const gone = await other.request();
  other.refuse(gone.id, "instance_lost");
  assert.equal(await soon("the end", left), "instance_lost");
  await fails(call, LeftError, "instance_lost");
  assert.throws(() => room.send("y"), { name: "LeftError", code: "instance_lost" });
  assert.equal(room.left?.code, "instance_lost");
  const late = new Promise<string>((resolve) => room.onLeave(({ code }) => resolve(code)));
  assert.equal(await soon("the end, for who comes late", late), "instance_lost");
  await room.leave();
  assert.equal(client.status, "resumed");
  await client.close();
});

test("a seat that is being given up is not taken again after a reconnect", async () => {
  const network = new Network();
  const [client, room, peer] = await network.seated();
  const leaving = room.leave();
  const first = await peer.request();
  assert.deepEqual([first.kind, first.fields], [kinds.leave, { instance: ARENA }]);
  peer.drop();
  const other = await network.accept();
  await other.checkIn();
  const again = await other.request();
  assert.deepEqual([again.kind, again.id], [kinds.leave, first.id]);
  other.reply(again.id, kinds.left, { instance: ARENA });
  await soon("the leave", leaving);
  assert.ok(await other.isSilent());
  assert.equal(room.left?.code, "left");
  await client.close();
});

test("a new life of the instance begins new numbers and says so", async () => {
  const network = new Network();
  const [client, room, peer] = await network.seated();
  const told = messages(room);
  const rewound = new Queue<number>();
  room.onRewound((unacknowledged) => rewound.push(unacknowledged));
  peer.snapshot(8, "before");
  peer.event(1, "a");
  await told.next("a");
  room.send("lost");
  const call = room.call("lost too");
  peer.drop();
  const other = await network.accept();
  await other.checkIn();
  const { id } = await other.request();
  other.reply(id, kinds.joined, joined(0, 1, { incarnation: "000000000001b" }));
  assert.equal(await rewound.next("the new life"), 2);
  await fails(call, CallUndecidedError, "undecided");
  other.event(1, "a new a");
  assert.equal(await told.next("the new a"), "a new a");
  other.snapshot(1, "after");
  room.send("new");
  const up = await other.up();
  assert.deepEqual([up.number, decode(up.payload)], [1, "new"]);
  assert.equal(room.state, "after");
  await client.close();
});

test("an instance that goes on elsewhere takes its seats along, without being asked and on this connection", async () => {
  const [client, room, peer] = await new Network().seated();
  const told = messages(room);
  const rewound = new Promise<number>((resolve) => room.onRewound(resolve));
  room.send("undecided");
  await peer.up();
  peer.say(kinds.rejoined, joined(0, 1, { incarnation: "000000000001b", channel: 9 }));
  assert.equal(await soon("the new life", rewound), 1);
  peer.event(1, "from where it was"); // On the channel that is over.
  peer.down(kinds.event, 1, 0, encode("from where it is"), 9, 9);
  assert.equal(await told.next("a message"), "from where it is");
  room.send("new");
  const up = await peer.up();
  assert.deepEqual([up.channel, up.number, decode(up.payload)], [9, 1, "new"]);
  assert.deepEqual([client.status, room.left], ["live", null]);
  await client.close();
});

test("another session has no requests and no live searches, and its seats begin anew", async () => {
  const network = new Network();
  const [client, room, peer] = await network.seated();
  const rewound = new Promise<number>((resolve) => room.onRewound(resolve));
  const creating = client.create("echo");
  const searching = client.search("arena");
  await peer.request();
  await peer.request();
  peer.drop();
  const other = await network.accept();
  await other.checkIn("228hk8hapcxw8");
  await fails(creating, UndecidedError, "undecided");
  const search = await other.request();
  assert.equal(search.kind, kinds.search);
  other.reply(search.id, kinds.found, { instances: [], cursor: null, explain: null });
  assert.deepEqual((await searching).instances, []);
  const rejoin = await other.request();
  other.reply(rejoin.id, kinds.joined, joined(0, 1));
  assert.equal(await soon("the new session's seat", rewound), 0);
  assert.equal(client.session, "228hk8hapcxw8");
  await client.close();
});

test("what a full queue threw away is sent again after a pause, from the first that is missing", async () => {
  const [client, room, peer] = await new Network().seated();
  room.send("one");
  room.send("two");
  await peer.up();
  await peer.up();
  const began = performance.now();
  peer.down(kinds.sendAgain, 0, 1, encode({ code: "busy", message: "a queue is full" }));
  peer.down(kinds.sendAgain, 0, 1, encode({ code: "busy", message: "a queue is full" }));
  await turn();
  room.send("three");
  const again = [await peer.up(), await peer.up()].map(({ number, payload }) => [number, decode(payload)]);
  assert.deepEqual(again, [
    [2, "two"],
    [3, "three"],
  ]);
  assert.ok(performance.now() - began >= 45, "after a pause");
  assert.equal(client.stats.sentAgain, 2);
  await client.close();
});

test("a full window refuses to queue more, until something is acknowledged", async () => {
  const [client, room, peer] = await new Network().seated();
  for (let count = 0; count < 64; count++) room.send(count);
  assert.throws(() => room.send("one more"), { name: "FullError", code: "full" });
  await assert.rejects(room.call("one more"), { name: "FullError", code: "full" });
  assert.throws(() => room.send("x".repeat(40_000)), { name: "TooLargeError", code: "too_large" });
  for (let count = 0; count < 64; count++) await peer.up();
  peer.down(kinds.downAck, 0, 1, new Uint8Array(0));
  await turn();
  assert.equal(room.send("fits"), 65);
  await client.close();
});

test("garbage from the server is a fault that is told, and the next connection goes on", async () => {
  const network = new Network();
  const [client, room, first] = await network.seated();
  const faults: [Uint8Array, RegExp][] = [
    [Buffer.of(0xa0, 7, 0), /has a header of/],
    [Buffer.of(0x90, 1, 0, 0, 0, 0x80), /./],
    [Buffer.from("9f63000000" + "82a4636f6465a178a76d657373616765a178", "hex"), /never made/],
    [Buffer.of(0x85, 0xc1), /type byte 0xc1/],
  ];
  const told = messages(room);
  let peer = first;
  for (const [index, [garbage, what]] of faults.entries()) {
    if (index === 1) {
      // The answer to a request that is under way, without its fields.
      const creating = client.create("echo");
      creating.catch(() => {});
      const { id } = await peer.request();
      garbage[1] = id;
    }
    peer.raw(garbage);
    await peer.closed();
    assert.match(client.stats.lastFault, what);
    peer = await network.accept();
    await peer.checkIn();
    for (;;) {
      const request = await peer.request();
      if (request.kind !== kinds.join) continue;
      peer.reply(request.id, kinds.joined, joined(0, index + 1));
      break;
    }
    peer.event(index + 1, index);
    assert.equal(await told.next("a message"), index);
    assert.equal(client.stats.misbehaved, index + 1);
  }
  // The fifth in a row is the last.
  const ended = new Promise<{ code: string }>((resolve) => client.on("ended", resolve));
  peer.raw(new Uint8Array(0));
  assert.equal((await soon("the end", ended)).code, "malformed");
  await fails(client.create("echo"), ClosedError, "malformed");
});

test("hostile frames never throw: each is ignored, or the connection is given up", async () => {
  const network = new Network();
  const hostile: ((peer: Peer) => void)[] = [
    (peer) => peer.patch(0, 1, "~~~~~~~~~~~~~\n"),
    (peer) => peer.piece(1, 0, new Uint8Array(2 << 20), 10),
    (peer) => peer.event(1, "x", 4_000_000_000),
    (peer) => peer.down(kinds.reply, 1, 0, new Uint8Array(2)),
    (peer) => peer.down(kinds.seatEnded, 0, 0, Buffer.of(0x07)),
    (peer) => peer.down(kinds.event, 1, 0, Buffer.of(0xd4, 0, 0)),
    (peer) => peer.piece(1, 0, Buffer.of(0xc1)),
    (peer) => peer.deliver.message("a text"),
    (peer) => peer.raw(new Uint8Array(2 << 20)),
    (peer) => peer.raw(Buffer.of(0x83, 1)),
    (peer) => peer.hello(),
    (peer) => peer.say(kinds.sessionServers, { session_servers: [{ urls: 7 }] }),
    (peer) => peer.raw(Buffer.of(0xef, 1, 2, 3)),
    (peer) => peer.raw(Buffer.from("b2070000000000", "hex")),
  ];
  for (const [index, attack] of hostile.entries()) {
    const [client, room, peer] = await network.seated();
    attack(peer);
    await turn();
    const isIgnored = index === 0 || index >= hostile.length - 2;
    assert.equal(client.stats.misbehaved, isIgnored ? 0 : 1, `attack ${index}: ${client.stats.lastFault}`);
    assert.equal(client.status, isIgnored ? "live" : "resuming", `attack ${index}`);
    assert.equal(room.left, null);
    await client.close();
  }
});

test("who is superseded is closed and told why, and does not come back", async () => {
  const network = new Network();
  const [client, room, peer] = await network.seated();
  const ended = new Promise<{ code: string }>((resolve) => client.on("ended", resolve));
  const left = new Promise<{ code: string }>((resolve) => room.onLeave(resolve));
  const call = room.call("x");
  const creating = client.create("echo");
  peer.closing("superseded");
  assert.equal((await soon("the end", ended)).code, "superseded");
  assert.equal((await soon("the room's end", left)).code, "superseded");
  await fails(call, LeftError, "superseded");
  await fails(creating, ClosedError, "superseded");
  await fails(client.search("arena"), ClosedError, "superseded");
  assert.deepEqual([client.status, client.endedBy?.code, network.dialled.length], ["closed", "superseded", 1]);
  const late = new Promise<{ code: string }>((resolve) => client.on("ended", resolve));
  assert.equal((await soon("the end, for who comes late", late)).code, "superseded");
});

test("a server that goes away is left for another, and stayed with where there is none", async () => {
  const network = new Network();
  const [client, peer] = await network.connected({ servers: [URL_A] }, [URL_A]);
  peer.say(kinds.goAway, { message: "maintenance", session_servers: [{ name: "a", urls: [URL_A] }] });
  await turn();
  assert.equal(client.status, "live");
  peer.say(kinds.goAway, { message: "maintenance", session_servers: [{ name: "b", urls: [URL_B] }] });
  const other = await network.accept();
  assert.equal(other.address, URL_B);
  await peer.closed();
  await other.checkIn();
  await turn();
  assert.deepEqual([client.status, client.server], ["resumed", URL_B]);
  await client.close();
});

test("heartbeats are answered, and a server that is silent is left", async () => {
  const network = new Network();
  const connecting = connect(network.options());
  const peer = await network.accept();
  await peer.checkIn(undefined, [], 100);
  const client = await soon("the check-in", connecting);
  const ping = await peer.until(kinds.ping);
  peer.raw(Buffer.concat([Buffer.of(kinds.serverPong), ping.subarray(1)]));
  peer.raw(Buffer.of(kinds.serverPing, 1, 2, 3, 4, 5, 6, 7, 8));
  assert.deepEqual([...(await peer.until(kinds.pong))], [kinds.pong, 1, 2, 3, 4, 5, 6, 7, 8]);
  assert.ok(client.latency !== null && client.latency >= 0 && client.latency < 10_000, String(client.latency));
  await peer.until(kinds.ping);
  await peer.closed();
  await (await network.accept()).checkIn();
  await client.close();
});

test("a client that finds no server any more ends, and what waits is told", async () => {
  const network = new Network();
  const [client, room, peer] = await network.seated({ reconnectMs: 150 });
  const ended = new Promise<{ code: string; message: string }>((resolve) => client.on("ended", resolve));
  network.dead.add(URL_A);
  const call = room.call("x");
  peer.drop();
  const { code, message } = await soon("the end", ended);
  assert.equal(code, "unavailable");
  assert.match(message, /a\.example:1.*nobody listens/);
  await fails(call, LeftError, "unavailable");
});

test("an undecided request can be asked again with the same id", async () => {
  const [client, peer] = await new Network().connected({ requestMs: 40 });
  const creating = client.create("echo");
  const first = await peer.request();
  const error: unknown = await creating.catch((error: unknown) => error);
  assert.ok(error instanceof UndecidedError && error.request === first.id, String(error));
  const again = client.askAgain(error.request);
  const second = await peer.request();
  assert.deepEqual([second.id, second.kind, second.fields], [first.id, first.kind, first.fields]);
  peer.reply(second.id, kinds.created, { instance: ARENA });
  assert.deepEqual(await soon("the answer", again), { type: "created", instance: ARENA });
  await fails(client.askAgain(error.request), ArgumentError, "argument_invalid");

  // The server itself may not know yet; and the answer may come before somebody asks again.
  const joining = client.joinOrCreate("arena");
  const join = await peer.request();
  peer.refuse(join.id, "undecided");
  const undecided: unknown = await joining.catch((error: unknown) => error);
  assert.ok(undecided instanceof UndecidedError);
  peer.reply(join.id, kinds.joined, joined(0, 1));
  await turn();
  const answer = await client.askAgain(undecided.request);
  assert.ok(answer.type === "joined" && answer.room.instance === ARENA);
  await client.close();
});

test("a search says on the wire what was asked, page after page", async () => {
  const [client, peer] = await new Network().connected();
  const filter = all(field("mode").eq("ranked"), field("rating").between(1400, 1600));
  const listed = (n: number) => {
    return { instance: `${n}`, seats_taken: n, seats_max: 16, created_ms: 1_800_000_000_000, meta: { mode: "ranked" } };
  };
  const finding = (async () => {
    const found: string[] = [];
    const order = { field: "created", descending: true };
    for await (const { instance } of client.find("arena", filter, { order, limit: 2 })) found.push(instance);
    return found;
  })();
  const first = await peer.request();
  const wire = { and: [{ eq: ["mode", "ranked"] }, { between: ["rating", 1400, 1600] }] };
  const order = { field: "created", descending: true };
  assert.deepEqual(first.fields, { kind: "arena", filter: wire, order, limit: 2, cursor: null, explain: false });
  const cursor = Uint8Array.of(1, 2);
  peer.reply(first.id, kinds.found, { instances: [listed(1), listed(2)], cursor, explain: null });
  const second = await peer.request();
  assert.deepEqual(second.fields, { ...first.fields, cursor });
  peer.reply(second.id, kinds.found, { instances: [listed(3)], cursor: null, explain: null });
  assert.deepEqual(await soon("what is found", finding), ["1", "2", "3"]);
  const refused = client.search("arena", field("nonsense").gt(1));
  peer.refuse((await peer.request()).id, "field_unknown");
  await fails(refused, RefusedError, "field_unknown");
  await client.close();
});

test("ranks, friends and private instances are asked for as they are written", async () => {
  const [client, peer] = await new Network().connected();
  const ranks = client.rank("elo", { around: null, limit: 3 });
  const rank = await peer.request();
  assert.deepEqual(rank.fields, { board: "elo", part: { around: null }, limit: 3 });
  const row = { rank: 1, user: "u", name: "<b>U</b>\u0007", score: -5 };
  peer.reply(rank.id, kinds.ranking, { members: 1, ranks: [row] });
  assert.deepEqual(await ranks, { members: 1, ranks: [row] });
  void client.rank("elo").catch(() => {});
  assert.deepEqual((await peer.request()).fields, { board: "elo", part: { from: 1 }, limit: 20 });
  void client.create("arena", { key: "k", params: { size: 50 }, private: true, expected: ["bo"] }).catch(() => {});
  const create = await peer.request();
  const params = encode({ size: 50 });
  assert.deepEqual(create.fields, { kind: "arena", key: "k", params, private: true, expected: ["bo"] });
  void client.join(ARENA, { options: "red" }).catch(() => {});
  assert.deepEqual((await peer.request()).fields, { instance: ARENA, options: encode("red") });
  const destroying = client.destroy(ARENA);
  const destroy = await peer.request();
  assert.deepEqual([destroy.kind, destroy.fields], [kinds.destroy, { instance: ARENA }]);
  peer.reply(destroy.id, kinds.destroyed, { instance: ARENA });
  await soon("the end of the instance", destroying);
  await client.close();
});

test("at most eight requests are under way, and none is lost", async () => {
  const [client, peer] = await new Network().connected();
  const creating = Array.from({ length: 12 }, (_, n) => client.create("echo", { key: `${n}` }));
  const requests = [];
  for (let count = 0; count < 8; count++) requests.push(await peer.request());
  assert.ok(await peer.isSilent());
  for (let count = 0; count < 12; count++) {
    const { id, fields } = requests.shift()!;
    peer.reply(id, kinds.created, { instance: fields.key });
    if (count < 4) requests.push(await peer.request());
  }
  assert.deepEqual(await soon("all of them", Promise.all(creating)), Array.from({ length: 12 }, (_, n) => `${n}`));
  await client.close();
});

test("a kind of its own bytes gives and takes bytes", async () => {
  const [client, peer] = await new Network().connected();
  const joining = client.joinOrCreate("raw", { raw: true });
  peer.reply((await peer.request()).id, kinds.joined, joined(0, 1));
  peer.down(kinds.event, 1, 0, Uint8Array.of(0xc1, 0xff));
  const room = await soon("the seat", joining);
  assert.deepEqual(await messages(room).next("bytes"), Uint8Array.of(0xc1, 0xff));
  room.send(Uint8Array.of(0xc1));
  assert.deepEqual([...(await peer.up()).payload], [0xc1]);
  assert.throws(() => room.send("text"), { name: "ArgumentError" });
  await client.close();
});

test("a handler that is unsubscribed is not called any more, also by one that is called before it", async () => {
  const [client, room, peer] = await new Network().seated();
  const told: string[] = [];
  room.onMessage((message) => {
    told.push(`first ${message}`);
    stop();
  });
  const stop = room.onMessage((message) => told.push(`second ${message}`));
  const last = messages(room);
  peer.event(1, "a");
  await last.next("a message");
  assert.deepEqual(told, ["first a"]);
  await client.close();
});

test("what an application's handler throws is its own, and stops nothing", async () => {
  const [client, room, peer] = await new Network().seated();
  const uncaught = new Queue<Error>();
  const caught = (error: Error): void => uncaught.push(error);
  process.setUncaughtExceptionCaptureCallback(caught);
  try {
    room.onMessage(() => {
      throw new Error("a bug of the page");
    });
    const told = messages(room);
    peer.event(1, "a");
    assert.equal(await told.next("a"), "a");
    assert.equal((await uncaught.next("the bug")).message, "a bug of the page");
    assert.equal(client.status, "live");
  } finally {
    process.setUncaughtExceptionCaptureCallback(null);
  }
  await client.close();
});

// Live searches.

const listed = (instance: string, seats_taken: number) => {
  return { instance, seats_taken, seats_max: 16, created_ms: 1, meta: {} };
};

function tell(peer: Peer, id: number, n: number, instances: object[], more: object = {}): void {
  peer.reply(id, kinds.changes, { n, anew: false, more: false, instances, gone: [], ended: null, ...more });
}

async function seen(peer: Peer): Promise<{ watch: number; n: number }> {
  return decode((await peer.until(kinds.seen)).subarray(1)) as { watch: number; n: number };
}

/** A client with a live search, and what it is told. */
async function watching(network: Network): Promise<[Client, Peer, Watch, Queue<string>, number]> {
  const [client, peer] = await network.connected();
  const told = new Queue<string>();
  const starting = client.watch("arena", field("seats_free").gt(0), (event) => told.push(said(event)));
  const request = await peer.request();
  assert.deepEqual([request.kind, request.fields], [kinds.watch, { kind: "arena", filter: { gt: ["seats_free", 0] } }]);
  peer.reply(request.id, kinds.watching, {});
  return [client, peer, await soon("the live search", starting), told, request.id];
}

function said(event: WatchEvent): string {
  switch (event.type) {
    case "add":
    case "remove":
      return `${event.type} ${event.listed.instance}`;
    case "change":
      return `change ${event.listed.instance} ${event.before.seatsTaken} to ${event.listed.seatsTaken}`;
    case "ready":
      return "ready";
    case "ended":
      return `ended ${event.why.code}`;
  }
}

async function next(told: Queue<string>, count: number): Promise<string[]> {
  const events = [];
  for (let n = 0; n < count; n++) events.push(await told.next("an event"));
  return events;
}

test("a live search tells what is there, what changes, and after a reconnect only what is different", async () => {
  const network = new Network();
  const [client, peer, watch, told, id] = await watching(network);
  tell(peer, id, 1, [listed("a", 1)], { anew: true, more: true });
  assert.deepEqual(await seen(peer), { watch: id, n: 1 });
  tell(peer, id, 2, [listed("b", 2)]);
  assert.deepEqual(await next(told, 3), ["add a", "add b", "ready"]);
  assert.deepEqual(await seen(peer), { watch: id, n: 2 });
  tell(peer, id, 5, [listed("a", 2), listed("c", 1)], { gone: ["b", "never there"] });
  assert.deepEqual(await next(told, 3), ["change a 1 to 2", "add c", "remove b"]);
  assert.deepEqual(await seen(peer), { watch: id, n: 5 });
  peer.drop();
  const other = await network.accept();
  await other.checkIn();
  tell(other, id, 1, [listed("a", 3), listed("d", 1)], { anew: true });
  assert.deepEqual(await next(told, 3), ["change a 2 to 3", "add d", "remove c"]);
  assert.deepEqual(await seen(other), { watch: id, n: 1 });
  assert.deepEqual([...watch.current.keys()].sort(), ["a", "d"]);
  watch.stop();
  const unwatch = await other.request();
  assert.deepEqual([unwatch.kind, unwatch.fields], [kinds.unwatch, { watch: id }]);
  tell(other, id, 2, [listed("e", 1)]);
  other.reply(unwatch.id, kinds.unwatched, {});
  await turn();
  assert.equal(told.length, 0);
  await client.close();
});

test("a live search that the cluster has forgotten is asked again and shows what is different", async () => {
  const network = new Network();
  const [client, peer, , told, id] = await watching(network);
  tell(peer, id, 1, [listed("a", 1), listed("b", 1)], { anew: true });
  await next(told, 3);
  await seen(peer);
  tell(peer, id, 0, [], { ended: { code: "watch_unknown", message: "ask again" } });
  const again = await peer.request();
  assert.deepEqual([again.kind, again.fields.kind], [kinds.watch, "arena"]);
  peer.refuse(again.id, "kind_unknown"); // A master that has just begun does not know it yet.
  const third = await peer.request();
  tell(peer, third.id, 1, [listed("b", 1), listed("c", 1)], { anew: true });
  peer.reply(third.id, kinds.watching, {});
  assert.deepEqual(await next(told, 2), ["add c", "remove a"]);
  tell(peer, third.id, 2, [], { ended: { code: "too_broad", message: "it grew" } });
  assert.deepEqual(await next(told, 1), ["ended too_broad"]);
  await client.close();
});

test("what is told before the answer to the request is not lost, and a refusal leaves nothing to end", async () => {
  const [client, peer] = await new Network().connected();
  const told = new Queue<string>();
  const starting = client.watch("arena", all(), (event) => told.push(said(event)));
  const { id } = await peer.request();
  tell(peer, id, 1, [listed("a", 1)], { anew: true });
  await turn();
  assert.equal(told.length, 0, "nothing is told before the application has it");
  peer.reply(id, kinds.watching, {});
  const watch = await soon("the live search", starting);
  assert.deepEqual(await next(told, 2), ["add a", "ready"]);
  assert.equal(watch.current.size, 1);
  await seen(peer);
  const broad = client.watch("arena", all(), () => assert.fail("it never was"));
  const second = await peer.request();
  peer.refuse(second.id, "too_broad");
  await fails(broad, RefusedError, "too_broad");
  await client.close();
});

test("a live search that was undecided can be asked again and has missed nothing", async () => {
  const [client, peer] = await new Network().connected({ requestMs: 50 });
  const told = new Queue<string>();
  const starting = client.watch("arena", all(), (event) => told.push(said(event)));
  const { id } = await peer.request();
  tell(peer, id, 1, [listed("a", 1)], { anew: true });
  const error: unknown = await starting.catch((error: unknown) => error);
  assert.ok(error instanceof UndecidedError);
  assert.equal(told.length, 0);
  const again = client.askAgain(error.request);
  peer.reply(id, kinds.watching, {});
  const answer = await soon("the answer", again);
  assert.ok(answer.type === "watching");
  assert.deepEqual(await next(told, 2), ["add a", "ready"]);
  await client.close();
});

test("live searches end with their session", async () => {
  const network = new Network();
  const [client, peer, , told] = await watching(network);
  peer.drop();
  await (await network.accept()).checkIn("228hk8hapcxw8");
  assert.deepEqual(await next(told, 1), ["ended session_expired"]);
  await client.close();
});
