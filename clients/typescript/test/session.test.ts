/** The session by itself, with the time given: what waits for seconds, and what any server may say. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { GreenroomError, Misbehaved } from "../src/errors.js";
import { decode, encode } from "../src/msgpack.js";
import type { Seat, SeatListener, Stats } from "../src/seat.js";
import { type Done, KEPT, Session } from "../src/session.js";
import type { WatchEvent } from "../src/watch.js";
import { kinds } from "../src/wire.js";
import { ARENA, joined } from "./server.js";
import { dice } from "./vectors.js";

const SESSION = "128hk8hapcxw8";

function stats(): Stats {
  const counts = { reconnects: 0, messages: 0, duplicatesDropped: 0, missed: 0, unheard: 0, patches: 0, snapshots: 0 };
  return { ...counts, states: 0, desyncs: 0, sentAgain: 0, misbehaved: 0, lastFault: "", unknownFrames: 0, roundTripMs: null };
}

class Table {
  readonly told: string[] = [];
  readonly answers: (Done | GreenroomError)[] = [];
  readonly stats = stats();
  readonly session: Session;

  constructor() {
    const listener: SeatListener = {
      message: () => this.told.push("message"),
      view: () => this.told.push("view"),
      refused: () => this.told.push("refused"),
      missed: () => this.told.push("missed"),
      rewound: () => this.told.push("rewound"),
      left: ({ code }) => this.told.push(`left ${code}`),
    };
    this.session = new Session(SESSION, 0, this.stats, { listener: () => listener, requested: () => {} });
    this.session.connected(0, SESSION);
  }

  answer = (answer: Done | GreenroomError): void => void this.answers.push(answer);

  reply(now: number, id: number, kind: number, fields: unknown): void {
    this.session.handle(now, Buffer.concat([Buffer.of(kind, id, 0, 0, 0), encode(fields)]));
  }

  /** A seat on channel 7. */
  seat(now: number): Seat {
    this.session.request(kinds.join, { instance: ARENA }, now + 5000, this.answer);
    const [[, id]] = this.sent(now) as [[number, number]];
    this.reply(now, id, kinds.joined, joined(0, 1));
    const done = this.answers.pop();
    assert.ok(!(done instanceof Error) && done?.type === "joined");
    this.sent(now);
    return done.seat;
  }

  /** A live search, and its events. */
  watch(now: number): { events: WatchEvent[]; done: Done & { type: "watching" } } {
    const events: WatchEvent[] = [];
    this.session.watch({ kind: "arena", filter: { and: [] } }, now + 5000, (event) => events.push(event), this.answer);
    const [[, id]] = this.sent(now) as [[number, number]];
    this.reply(now, id, kinds.watching, {});
    const done = this.answers.pop();
    assert.ok(!(done instanceof Error) && done?.type === "watching");
    done.watch.mirror.open();
    return { events, done };
  }

  tell(now: number, id: number, more: object): void {
    this.reply(now, id, kinds.changes, { n: 1, anew: false, more: false, instances: [], gone: [], ended: null, ...more });
  }

  forget(now: number, id: number): void {
    this.tell(now, id, { ended: { code: "watch_unknown", message: "ask again" } });
  }

  refuse(now: number, id: number, code: string): void {
    this.reply(now, id, kinds.refused, { code, message: "a text" });
  }

  /** Lets time pass, and gives the kinds and numbers of what was sent. */
  sent(now: number): [number, number][] {
    this.session.timePassed(now);
    return this.session.takeFrames().map((frame) => {
      const at = frame[0]! >= 0x20 ? 5 : 1; // The number of a message stands behind its channel.
      return [frame[0]!, frame.length >= at + 4 ? new DataView(frame.buffer, frame.byteOffset).getUint32(at, true) : 0];
    });
  }
}

test("a server that forgets a live search again and again is asked less and less often", () => {
  const table = new Table();
  table.watch(0);
  let now = 0;
  const pauses = [];
  for (let id = 1; id < 8; id++) {
    table.forget(now, id);
    table.forget(now, id); // Said twice, it is asked once.
    assert.deepEqual(table.sent(now), []);
    const at = table.session.deadline();
    pauses.push(at - now);
    now = at;
    assert.deepEqual(table.sent(now), [[kinds.watch, id + 1]]);
    table.reply(now, id + 1, kinds.watching, {});
  }
  assert.deepEqual(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
});

test("what a new master does not know yet is waited for, and then believed", () => {
  const table = new Table();
  const { events } = table.watch(0);
  table.forget(0, 1);
  let now = 0;
  for (let id = 2; events.length === 0; id++) {
    now = table.session.deadline();
    assert.deepEqual(table.sent(now), [[kinds.watch, id]]);
    table.refuse(now, id, "kind_unknown");
  }
  assert.ok(now >= KEPT && now < 2 * KEPT, String(now));
  assert.deepEqual(events, [{ type: "ended", why: { code: "kind_unknown", message: "a text" } }]);
  assert.equal(table.session.deadline(), Infinity);
});

test("a live search of which a new connection brings nothing is ended and asked again", () => {
  const table = new Table();
  const { done } = table.watch(0);
  table.session.disconnected();
  table.session.connected(0, SESSION);
  assert.equal(table.session.deadline(), 5000);
  table.tell(100, 1, { anew: true, more: true });
  table.sent(1000);
  assert.equal(table.session.deadline(), Infinity, "it is told anew");
  table.session.disconnected();
  table.session.connected(10_000, SESSION);
  assert.deepEqual(table.sent(15_000), [
    [kinds.unwatch, 2],
    [kinds.watch, 3],
  ]);
  // Stopped while it is asked, it is ended once there is something to end.
  table.session.stopWatch(15_000, done.watch);
  assert.deepEqual(table.sent(15_000), []);
  table.reply(15_000, 3, kinds.watching, {});
  assert.deepEqual(table.sent(15_000), [[kinds.unwatch, 4]]);
});

test("acknowledgements of live searches leave room for what games are told", () => {
  const table = new Table();
  const seat = table.seat(0);
  const ids = [];
  for (let id = 2; id < 32; id++) {
    table.watch(0);
    ids.push(id);
  }
  for (const id of ids) table.tell(0, id, { anew: true });
  const seen = (now: number): number => table.sent(now).filter(([kind]) => kind === kinds.seen).length;
  assert.equal(seen(0), 10, "at once");
  assert.equal(seen(49), 0);
  assert.equal(seen(100), 2);
  // What was told on a connection that is gone is not acknowledged on another.
  table.session.disconnected();
  table.session.connected(100, SESSION);
  assert.equal(seen(4000), 0);
  table.tell(5000, 2, { n: 2 });
  assert.equal(seen(5000), 1);
  assert.equal(seat.ended, null);
});

test("a snapshot that does not come is asked for after 2 s, and less and less often", () => {
  const table = new Table();
  table.seat(0);
  const asked = [];
  let now = 0;
  for (let count = 0; count < 6; count++) {
    now = table.session.deadline();
    assert.deepEqual(table.sent(now).map(([kind]) => kind), [kinds.needSnapshot]);
    asked.push(now);
  }
  assert.deepEqual(asked, [2000, 6000, 14_000, 30_000, 60_000, 90_000]);
});

test("what came is acknowledged within 50 ms, and not twice", () => {
  const table = new Table();
  table.seat(0);
  const event = (number: number): Uint8Array => {
    return Buffer.concat([Buffer.from(`a007000000${number.toString(16).padStart(2, "0")}0000000000000009000000`, "hex"), encode("x")]);
  };
  table.session.handle(0, event(1));
  assert.deepEqual(table.sent(49), []);
  assert.equal(table.session.deadline(), 50);
  assert.deepEqual(table.sent(50), [[kinds.ack, 0]]);
  table.session.handle(60, event(1)); // It came again: its acknowledgement was lost.
  assert.equal(table.session.deadline(), 110);
  assert.deepEqual(table.told, ["message"]);
});

test("a seat that nobody asked again for is given up, and a late one too", () => {
  const table = new Table();
  table.session.request(kinds.joinOrCreate, { kind: "arena" }, 5000, table.answer);
  table.session.request(kinds.joinOrCreate, { kind: "arena" }, 5000, table.answer);
  assert.equal(table.sent(0).length, 2);
  assert.deepEqual(table.sent(5000), []);
  assert.deepEqual(table.answers.map((answer) => (answer as GreenroomError).code), ["undecided", "undecided"]);
  table.reply(6000, 1, kinds.joined, joined(0, 1)); // Kept for who asks again.
  const requests = (now: number) => table.sent(now).filter(([kind]) => kind < 0x20);
  assert.deepEqual(requests(34_000), []);
  assert.deepEqual(requests(35_000), [[kinds.leave, 3]]);
  table.reply(36_000, 2, kinds.joined, joined(0, 1, { instance: "another" })); // Given up before it came.
  assert.deepEqual(requests(36_000), [[kinds.leave, 4]]);
  table.reply(36_000, 3, kinds.left, { instance: ARENA });
  assert.deepEqual(table.told, []);
});

test("what waits for a connection until its deadline was not started", () => {
  const table = new Table();
  table.session.disconnected();
  table.session.request(kinds.create, { kind: "echo" }, 5000, table.answer);
  assert.deepEqual(table.sent(4999), []);
  assert.deepEqual(table.sent(5000), []);
  assert.equal((table.answers[0] as GreenroomError).name, "UnavailableError");
  for (let count = 0; count < 70; count++) table.session.request(kinds.create, { kind: "echo" }, 9000, table.answer);
  assert.equal(table.answers.length, 7, "64 wait, and no more");
});

test("streams that begin at the end of numbers are refused", () => {
  const table = new Table();
  table.seat(0);
  table.session.disconnected();
  table.session.connected(0, SESSION);
  assert.deepEqual(table.sent(0), [[kinds.join, 2]]);
  assert.throws(() => table.reply(0, 2, kinds.joined, joined(0xffff_ffff, 1)), /begin at 4294967295/);
});

test("whatever a server says, the session goes on or says what is wrong", () => {
  const random = dice(6);
  const below = (bound: number): number => Math.floor(random() * bound);
  let faults = 0;
  for (let round = 0; round < 3000; round++) {
    const table = new Table();
    const seat = table.seat(0);
    table.watch(0);
    for (let count = 1 + below(20); count > 0; count--) {
      // Kinds that reach far, on the channel that is there, with small numbers.
      const any = below(256);
      const kind = [any, 0xa0 | (any & 0x0f), 0xb0 | (any & 1), 0x90 | (any & 0x0f)][below(4)]!;
      const channel = kind >= 0xa0 ? 7 : below(4);
      const head = Array.from({ length: below(24) }, () => below(4));
      const payload = random() < 0.5 ? Array.from({ length: below(60) }, () => below(256)) : [...encode(joined(below(3), below(3)))];
      try {
        table.session.handle(0, Uint8Array.from([kind, channel, 0, 0, 0, ...head, ...payload]));
        if (seat.ended === null) {
          try {
            seat.send(encode("x"));
          } catch (error) {
            assert.ok(error instanceof GreenroomError);
          }
        }
        table.session.timePassed(below(3) * KEPT);
      } catch (error) {
        assert.ok(error instanceof Misbehaved, String((error as Error).stack));
        faults += 1;
      }
      for (const frame of table.session.takeFrames()) {
        if (frame[0]! >= 0x10 && frame[0]! < 0x20) decode(frame.subarray(9));
      }
    }
  }
  assert.ok(faults > 100);
});
