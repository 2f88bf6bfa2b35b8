/** The recorded conversations, each with a whole client that is fed what the server says. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { type Client, connect, GreenroomError, type Room, type Watch } from "../src/index.js";
import { decode } from "../src/msgpack.js";
import { kinds } from "../src/wire.js";
import { Network, type Peer, soon, turn, upOf } from "./server.js";
import { bytes, conversations, hex, vector } from "./vectors.js";

interface Step {
  connection?: "opened" | "lost";
  from?: "client" | "server";
  hex?: string;
  lost?: boolean;
  then?: any;
  note: string;
}

/** A client that does what the recorded one did, and what it came to. */
class Player {
  readonly network = new Network();
  client: Client | null = null;
  room: Room | null = null;
  peer: Peer | null = null;
  watch: Watch | null = null;
  /** What came to the application since the last look. */
  told: any[] = [];
  connecting: Promise<unknown> = Promise.resolve();

  /** What a request or call comes to. */
  note(promise: Promise<unknown>, as: (value: any) => any): void {
    promise.then(
      (value) => this.told.push(as(value)),
      (error: unknown) => {
        assert.ok(error instanceof GreenroomError, String(error));
        this.told.push(as(error));
      },
    );
  }

  checkIn(fields: any): void {
    const { scheme, token, name } = fields.credentials;
    const session = hex(fields.session_key);
    const kept = new Map([
      ["greenroom:session", session],
      ["greenroom:request", "0"],
    ]);
    const tab = {
      getItem: (name: string) => kept.get(name) ?? null,
      setItem: (name: string, value: string) => void kept.set(name, value),
      removeItem: (name: string) => void kept.delete(name),
    };
    const connecting = connect(this.network.options({ auth: { scheme, token, name }, storage: { tab } }));
    this.connecting = connecting.then(
      (client) => {
        this.client = client;
        client.on("ended", ({ code }) => this.told.push({ closed: code }));
      },
      (error: unknown) => {
        assert.ok(error instanceof GreenroomError);
        this.told.push({ closed: error.code });
      },
    );
  }

  take(room: Room): void {
    this.room = room;
    room.onMessage((message) => this.told.push({ delivered: message }));
    room.onRefused((number, refusal) => this.told.push({ delivered: refusal, call: number }));
    room.onRewound(() => this.told.push({ restarted: true }));
    room.onLeave(({ code }) => this.told.push({ seat_ended: code }));
    room.onState((state) => this.told.push({ view: 0, state }));
    room.onPrivateState((state) => this.told.push({ view: 0x8000 | room.seat, state }));
  }

  /** Does what led to this frame of the recorded client. */
  act(frame: Uint8Array): void {
    const [kind, client, room] = [frame[0]!, this.client!, this.room!];
    const fields: any = kind >= 0x10 && kind < 0x20 ? decode(frame.subarray(9)) : null;
    const asked = kind === kinds.call || kind === kinds.query || kind === kinds.message ? upOf(frame) : null;
    switch (kind) {
      case kinds.joinOrCreate:
        return void client.joinOrCreate(fields.kind).then((taken) => this.take(taken));
      case kinds.create:
        return void client.create(fields.kind);
      case kinds.leave:
        return void room.leave();
      case kinds.search: {
        const found = client.search(fields.kind, fields.filter, fields);
        return this.note(found, (answer) =>
          answer.code ? { refused: answer.code } : { found: answer.instances.map((listed: any) => listed.instance), more: answer.cursor !== null },
        );
      }
      case kinds.watch:
        return void client.watch(fields.kind, fields.filter, () => {}).then((watch) => (this.watch = watch));
      case kinds.unwatch:
        return this.watch!.stop();
      case kinds.message:
        return void room.send(decode(asked!.payload));
      case kinds.call: {
        const number = asked!.number;
        const reply = room.call(decode(asked!.payload));
        return this.note(reply, (answer) => ({ delivered: answer.refusal ?? answer, call: number }));
      }
      case kinds.query: {
        const number = asked!.number;
        const reply = room.query(decode(asked!.payload));
        return this.note(reply, (answer) => ({ delivered: answer.refusal ?? answer, query: number }));
      }
    }
  }
}

/** Whether a frame that the client sent says what the recorded one says; what it acknowledges with it is its choice. */
function isLike(sent: Uint8Array, recorded: Uint8Array): boolean {
  if (sent[0] !== recorded[0]) return false;
  if (sent[0] === kinds.hello) return true;
  if (sent[0]! < 0x10) return hex(sent) === hex(recorded);
  if (sent[0]! < 0x20) return hex(sent.subarray(0, 5)) === hex(recorded.subarray(0, 5)) && same(sent, recorded, 9);
  const [ours, theirs] = [upOf(sent), upOf(recorded)];
  const isSnapshot = sent[0] === kinds.needSnapshot;
  const body = isSnapshot ? (decode(ours.payload) as any).view === (decode(theirs.payload) as any).view : same(sent, recorded, 13);
  return ours.channel === theirs.channel && ours.number === theirs.number && body;
}

function same(sent: Uint8Array, recorded: Uint8Array, from: number): boolean {
  const [ours, theirs] = [sent.subarray(from), recorded.subarray(from)];
  try {
    assert.deepEqual(decode(ours), decode(theirs));
    return true;
  } catch {
    return hex(ours) === hex(theirs);
  }
}

/** Steps whose frames this client never sends, since it is one that keeps the rules. */
const NEVER_SENT = new Set([0x1e, 0x7e]);

async function replay(name: string): Promise<{ checked: number; sent: number }> {
  const player = new Player();
  try {
    return await play(name, player);
  } finally {
    await player.client?.close();
  }
}

async function play(name: string, player: Player): Promise<{ checked: number; sent: number }> {
  const steps: Step[] = vector(`conversations/${name}.json`).steps;
  let [checked, sent] = [0, 0];
  let isFirst = true;
  for (const [number, step] of steps.entries()) {
    const place = `${name}, step ${number}: ${step.note}`;
    if (step.connection === "opened") {
      if (!isFirst) player.peer = await player.network.accept();
      continue;
    }
    if (step.connection === "lost") {
      if (steps.slice(number).some(({ connection }) => connection === "opened")) player.peer!.drop();
      continue;
    }
    const frame = bytes(step.hex!);
    if (step.from === "client") {
      if (NEVER_SENT.has(frame[0]!)) return { checked, sent }; // What follows is the answer to a fault.
      if (isFirst && frame[0] === kinds.hello) {
        const checkIn = steps.find(({ hex }) => hex?.startsWith("02"));
        const fields: any = checkIn === undefined ? { session_key: new Uint8Array(16), credentials: { scheme: "guest", token: "a", name: "" } } : decode(bytes(checkIn.hex!).subarray(1));
        player.checkIn(fields);
        player.peer = await player.network.accept();
        isFirst = false;
      }
      // These come by themselves, when there is time.
      if (frame[0] === kinds.ack || frame[0] === kinds.ping) continue;
      if (frame[0] === kinds.pong) {
        assert.equal(hex(await player.peer!.until(kinds.pong)), hex(frame), place);
        sent += 1;
        continue;
      }
      if (player.client !== null && !isAgain(steps, number)) player.act(frame);
      if (checkIn(frame) && decode(frame.subarray(1)) !== null && name === "version_mismatch") continue;
      if (step.lost) continue;
      for (;;) {
        const ours = await player.peer!.next();
        assert.ok(ours !== null, `the end, instead of a frame: ${place}`);
        if (isLike(ours, frame)) break;
        // What the recorded client had lost was sent here, and arrived.
        const isLost = steps.some(({ lost, hex }) => lost && hex !== undefined && isLike(ours, bytes(hex)));
        const isEarly = frame[0]! >= 0x10 && (ours[0] === kinds.hello || ours[0] === kinds.checkIn);
        assert.ok(isLost || isEarly, `${hex(ours)} instead of ${step.hex}: ${place}`);
      }
      sent += 1;
      continue;
    }
    if (step.lost) continue;
    player.told = [];
    player.peer!.raw(frame);
    await turn();
    if (frame[0] === kinds.checkedIn) await soon("the check-in", player.connecting);
    if (step.then !== undefined) {
      check(player, step.then, place);
      checked += 1;
    }
  }
  return { checked, sent };
}

const checkIn = (frame: Uint8Array): boolean => frame[0] === kinds.checkIn;

/** Whether the client sends this by itself: it was sent before, or it is how the client comes back. */
function isAgain(steps: Step[], number: number): boolean {
  const frame = bytes(steps[number]!.hex!);
  const kind = frame[0]!;
  if (kind < 0x10 || kind === kinds.join || kind === kinds.needSnapshot) return true;
  return steps.slice(0, number).some(({ from, hex: before }) => {
    if (from !== "client" || before === undefined || !before.startsWith(hex(frame.subarray(0, 1)))) return false;
    const earlier = bytes(before);
    const at = kind < 0x20 ? 1 : 5;
    return hex(earlier.subarray(at, at + 4)) === hex(frame.subarray(at, at + 4));
  });
}

function check(player: Player, then: any, place: string): void {
  const { told } = player;
  const has = (wanted: any): void => {
    const found = told.some((each) => {
      try {
        assert.deepEqual(each, wanted);
        return true;
      } catch {
        return false;
      }
    });
    assert.ok(found, `${JSON.stringify(wanted)} is not among ${JSON.stringify(told)}: ${place}`);
  };
  if ("state" in then) has({ view: then.view, state: then.state });
  else if ("set" in then) {
    if (then.set === null) return;
    const current = [...player.watch!.current.values()].map(({ instance, seatsTaken }) => [instance, seatsTaken]);
    assert.deepEqual(Object.fromEntries(current), then.set, place);
  } else if ("dropped" in then) assert.deepEqual(told, [], place);
  else if ("ask" in then) assert.deepEqual(told, [], place); // What is asked for comes as a frame.
  else if ("go_away" in then) return; // Where it goes is the next connection.
  else if ("send_again" in then) assert.ok(player.client!.stats.sentAgain > 0, place);
  else if ("acknowledged" in then) return; // What is sent again shows it.
  else has(then);
}

for (const name of conversations()) {
  test(`a client comes to what is recorded: ${name}`, async () => {
    const { checked, sent } = await replay(name);
    const hasSteps = vector(`conversations/${name}.json`).steps.some(({ then }: Step) => then !== undefined);
    assert.ok(checked > 0 || !hasSteps || name === "unexpected_kind", "nothing was checked");
    assert.ok(sent >= 1, "nothing was sent");
  });
}
