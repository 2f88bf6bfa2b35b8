import assert from "node:assert/strict";
import { test } from "node:test";
import { all, any, field, not } from "../src/filter.js";
import { decode, encode } from "../src/msgpack.js";
import * as wire from "../src/wire.js";
import { bytes, hex, vector } from "./vectors.js";

interface Recorded {
  name: string;
  from: "client" | "server";
  kind: number;
  header: Record<string, number>;
  fields: any;
  payload: string;
  frame: string;
}

const recorded: Recorded[] = vector("frames.json").frames;
const of = (from: string): Recorded[] => recorded.filter((each) => each.from === from);

test("every frame that a client sends is written as it is recorded", () => {
  for (const { name, kind, header, fields, payload, frame } of of("client")) {
    const body = bytes(payload);
    if (fields !== null) assert.deepEqual(decode(body), fields, name);
    let made;
    if (kind === wire.kinds.ping || kind === wire.kinds.pong) {
      assert.equal(wire.stampOf(bytes(frame)), new DataView(body.buffer).getUint32(0, true));
      continue;
    } else if (kind < 0x10 && fields === null) {
      continue; // The announcement of a trace: this client begins none.
    } else if (kind < 0x10) made = wire.plainFrame(kind, fields);
    else if (kind < 0x20) made = wire.requestFrame(kind, header.id!, header.answered!, encode(fields));
    else made = wire.upFrame(kind, header.channel!, header.number!, header.ack!, body);
    assert.equal(hex(made.subarray(0, made.length - body.length)), frame.slice(0, frame.length - payload.length), name);
    // Keys stand in the order of the fields; widths of floats are the writer's choice.
    if (kind < 0x20) assert.equal(hex(made), frame, name);
  }
});

test("every frame that a server sends is read as it is recorded", () => {
  const read: Record<number, (payload: Uint8Array) => any> = {
    [wire.kinds.serverHello]: wire.serverHelloOf,
    [wire.kinds.checkedIn]: wire.checkedInOf,
    [wire.kinds.closing]: wire.refusalOf,
    [wire.kinds.goAway]: wire.goAwayOf,
    [wire.kinds.sessionServers]: wire.sessionServersOf,
    [wire.kinds.rejoined]: wire.joinedOf,
    [wire.kinds.created]: (payload) => ({ instance: wire.instanceOf(payload) }),
    [wire.kinds.joined]: wire.joinedOf,
    [wire.kinds.left]: (payload) => ({ instance: wire.instanceOf(payload) }),
    [wire.kinds.destroyed]: (payload) => ({ instance: wire.instanceOf(payload) }),
    [wire.kinds.found]: wire.foundOf,
    [wire.kinds.ranking]: wire.rankingOf,
    [wire.kinds.changes]: wire.changesOf,
    [wire.kinds.refused]: wire.refusalOf,
  };
  const seen = new Set<number>();
  for (const { name, kind, header, fields, payload, frame } of of("server")) {
    const whole = bytes(frame);
    seen.add(kind);
    if (kind >= 0x90 && kind < 0xa0) assert.equal(wire.replyOf(whole).id, header.id, name);
    if (kind >= 0xa0 && kind < 0xb0) {
      const down = wire.downOf(whole);
      for (const field of ["channel", "number", "ack", "tick"] as const) assert.equal(down[field], header[field], name);
      assert.equal(hex(down.payload), payload, name);
    } else if (kind === wire.kinds.patch || kind === wire.kinds.piece) {
      const latest: any = kind === wire.kinds.patch ? wire.patchOf(whole) : wire.pieceOf(whole);
      for (const [field, value] of Object.entries(header)) assert.equal(latest[field], value, name);
      assert.equal(hex(latest.delta ?? latest.bytes), payload, name);
    } else if (kind in read) {
      const there = JSON.stringify(named(read[kind]!(bytes(payload)), fields), text);
      assert.equal(there, JSON.stringify(fields.session_servers && kind === 0x87 ? fields.session_servers : fields, text), name);
    }
  }
  for (const kind of Object.keys(read)) assert.ok(seen.has(Number(kind)), `no frame of kind ${kind} is recorded`);
});

const text = (_: string, value: unknown): unknown => (value instanceof Uint8Array ? hex(value) : value);

/** What was read, with the names and in the order of the wire, without the fields that nobody here reads. */
function named(read: any, fields: any): any {
  if (Array.isArray(read)) return read.map((item, index) => named(item, (fields.session_servers ?? fields)[index]));
  if (typeof read !== "object" || read === null || read instanceof Uint8Array) return read;
  return Object.fromEntries(
    Object.keys(fields).map((name) => {
      const ours = name.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase());
      return [name, ours in read ? named(read[ours], fields[name]) : fields[name]];
    }),
  );
}

test("a frame that is shorter than its header is refused with its lengths", () => {
  for (const { name, hex, text } of vector("refused.json").headers) {
    const frame = bytes(hex);
    const kind = frame[0]!;
    const read =
      kind === 0xb0 ? wire.patchOf : kind === 0xb1 ? wire.pieceOf : kind >= 0xa0 ? wire.downOf : kind >= 0x90 ? wire.replyOf : null;
    if (read !== null) assert.throws(() => read(frame), { code: "short_header", message: text }, name);
  }
});

test("frames with fields of the wrong shape are refused, and fields that nobody knows are ignored", () => {
  const joined = { instance: "a", kind: "b", incarnation: "c", channel: 1, seat: 2, up_received: 3, down_next: 4, tick_rate: 5 };
  assert.equal(wire.joinedOf(encode({ ...joined, weather: ["rain"] })).seat, 2);
  const wrong = [
    { ...joined, seat: 65536 },
    { ...joined, seat: -1 },
    { ...joined, seat: 1.5 },
    { ...joined, seat: 2n ** 63n },
    { ...joined, channel: "1" },
    { ...joined, instance: undefined },
    { ...joined, kind: null },
    7,
    [joined],
    "joined",
  ];
  for (const each of wrong) assert.throws(() => wire.joinedOf(encode(each)), { name: "DecodeError", code: "shape" });
  assert.throws(() => wire.sessionServersOf(encode({ session_servers: [{ name: "a", urls: [1] }] })), { code: "shape" });
  assert.throws(() => wire.sessionServersOf(encode({ session_servers: { name: "a" } })), { code: "shape" });
  const listed = { instance: "a", seats_taken: 1, seats_max: 2, created_ms: 3, meta: { a: [1] } };
  assert.throws(() => wire.foundOf(encode({ instances: [listed], cursor: null, explain: null })), { code: "shape" });
});

test("filters are written as the specification has them", () => {
  const queries: { filter: any; hex: string; text: string }[] = vector("filters.json").queries;
  assert.ok(queries.length > 0);
  for (const { filter, hex: expected, text } of queries) assert.equal(hex(encode(filter)), expected, text);
  const built = all(field("mode").eq("ranked"), field("rating").between(1400, 1600), field("seats_free").gt(0));
  assert.deepEqual(built, queries[1]!.filter);
  assert.deepEqual(all(all(field("a").ne(1), field("b").lt(2)), not(any(any(field("c").le("x")), field("d").prefix("de")))), {
    and: [{ ne: ["a", 1] }, { lt: ["b", 2] }, { not: { or: [{ le: ["c", "x"] }, { prefix: ["d", "de"] }] } }],
  });
  assert.deepEqual(field("e").oneOf([1, "two", true]), { in: ["e", [1, "two", true]] });
  assert.deepEqual(field("f").ge(2n ** 62n), { ge: ["f", 2n ** 62n] });
});

test("the view that only a seat sees has its number", () => {
  for (const { seat, view } of vector("ids.json").views) assert.equal(wire.viewOfSeat(seat), view);
});
