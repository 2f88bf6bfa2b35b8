/** Session servers that a test plays itself, behind sockets that are none: everything in one process, nothing by chance. */

import assert from "node:assert/strict";
import { type Client, connect, type Options, type Room, type Socket, type SocketConstructor } from "../src/index.js";
import { decode, encode } from "../src/msgpack.js";
import { kinds, replyOf } from "../src/wire.js";

const WIDE = { depth: 64, nodes: 1 << 20, elements: 1 << 18 };
export const ARENA = "014d2pf2dbsqqzxq5tk1v58cgg";
export const URL_A = "ws://a.example:1/";
export const URL_B = "ws://b.example:2/";

/** Everything here happens at once, or never. */
export async function soon<T>(what: string, promise: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited in vain for ${what}`)), 10_000);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** What comes, one after the other, and who waits for it. */
export class Queue<T> {
  #items: T[] = [];
  #waiting: ((item: T) => void)[] = [];

  push(item: T): void {
    const waiting = this.#waiting.shift();
    if (waiting !== undefined) waiting(item);
    else this.#items.push(item);
  }

  get length(): number {
    return this.#items.length;
  }

  next(what: string): Promise<T> {
    if (this.#items.length > 0) return Promise.resolve(this.#items.shift()!);
    return soon(what, new Promise((resolve) => this.#waiting.push(resolve)));
  }
}

/** A header and the fields of a request that a client made. */
export interface Request {
  readonly kind: number;
  readonly id: number;
  readonly answered: number;
  readonly fields: any;
}

/** A frame to the instance. */
export interface Up {
  readonly kind: number;
  readonly channel: number;
  readonly number: number;
  readonly ack: number;
  readonly payload: Uint8Array;
}

/** The server's end of one connection. */
export class Peer {
  readonly #frames = new Queue<Uint8Array | null>();
  isClosed = false;

  constructor(
    readonly address: string,
    readonly protocol: string,
    readonly deliver: { message(data: unknown): void; close(): void },
  ) {}

  took(frame: Uint8Array | null): void {
    this.isClosed ||= frame === null;
    this.#frames.push(frame);
  }

  /** The next frame that is neither a heartbeat nor a mere acknowledgement; `null` for the end. */
  async next(): Promise<Uint8Array | null> {
    for (;;) {
      const frame = await this.#frames.next("a frame of the client");
      if (frame === null || ![kinds.ping, kinds.pong, kinds.ack].includes(frame[0] as never)) return frame;
    }
  }

  /** The next frame of this kind, whatever comes before it. */
  async until(kind: number): Promise<Uint8Array> {
    for (;;) {
      const frame = await this.#frames.next(`a frame of kind ${kind}`);
      assert.ok(frame !== null, `the end, where a frame of kind ${kind} should come`);
      if (frame[0] === kind) return frame;
    }
  }

  async closed(): Promise<void> {
    while ((await this.#frames.next("the end of the connection")) !== null);
  }

  async request(): Promise<Request> {
    const frame = await this.next();
    assert.ok(frame !== null && frame[0]! >= 0x10 && frame[0]! < 0x20, `a request, and no ${frame?.[0]}`);
    const view = new DataView(frame.buffer);
    const [id, answered] = [view.getUint32(1, true), view.getUint32(5, true)];
    return { kind: frame[0]!, id, answered, fields: decode(frame.subarray(9)) };
  }

  async up(): Promise<Up> {
    const frame = await this.next();
    assert.ok(frame !== null && frame[0]! >= 0x20 && frame[0]! < 0x30, `a frame to the instance, and no ${frame?.[0]}`);
    return upOf(frame);
  }

  /** Whether nothing is here that the client sent, but heartbeats and acknowledgements, once it did what it has to do. */
  async isSilent(): Promise<boolean> {
    await turn();
    while (this.#frames.length > 0) {
      const frame = await this.#frames.next("what is there");
      if (frame === null || ![kinds.ping, kinds.pong, kinds.ack].includes(frame[0] as never)) return false;
    }
    return true;
  }

  raw(frame: Uint8Array): void {
    this.deliver.message(new Uint8Array(frame).buffer); // A copy of its own: a Buffer is a part of another.
  }

  say(kind: number, fields: unknown): void {
    this.raw(Buffer.concat([Buffer.of(kind), encode(fields, WIDE)]));
  }

  reply(id: number, kind: number, fields: unknown): void {
    const head = Buffer.alloc(5);
    head[0] = kind;
    head.writeUInt32LE(id, 1);
    const frame = Buffer.concat([head, encode(fields, WIDE)]);
    assert.equal(replyOf(frame).id, id);
    this.raw(frame);
  }

  refuse(id: number, code: string): void {
    this.reply(id, kinds.refused, { code, message: "a text" });
  }

  down(kind: number, number: number, ack: number, payload: Uint8Array, tick = 9, channel = 7): void {
    const head = Buffer.alloc(17);
    head[0] = kind;
    [channel, number, ack, tick].forEach((value, index) => head.writeUInt32LE(value, 1 + 4 * index));
    this.raw(Buffer.concat([head, payload]));
  }

  event(number: number, message: unknown, ack = 0): void {
    this.down(kinds.event, number, ack, encode(message));
  }

  answer(kind: number, number: number, ack: number, call: number, value: unknown): void {
    const of = Buffer.alloc(4);
    of.writeUInt32LE(call);
    this.down(kind, number, ack, Buffer.concat([of, encode(value)]));
  }

  patch(base: number, version: number, delta: string, view = 0): void {
    const head = Buffer.alloc(19);
    head[0] = kinds.patch;
    head.writeUInt32LE(7, 1);
    head.writeUInt16LE(view, 5);
    [9, base, version].forEach((value, index) => head.writeUInt32LE(value, 7 + 4 * index));
    this.raw(Buffer.concat([head, Buffer.from(delta, "latin1")]));
  }

  piece(version: number, offset: number, whole: Uint8Array, end = whole.length, view = 0): void {
    const head = Buffer.alloc(23);
    head[0] = kinds.piece;
    head.writeUInt32LE(7, 1);
    head.writeUInt16LE(view, 5);
    [9, offset, version, whole.length].forEach((value, index) => head.writeUInt32LE(value, 7 + 4 * index));
    this.raw(Buffer.concat([head, whole.subarray(offset, end)]));
  }

  snapshot(version: number, state: unknown, view = 0): void {
    this.piece(version, 0, encode(state, WIDE), undefined, view);
  }

  hello(heartbeat = 30_000): void {
    this.say(kinds.serverHello, { protocol: 1, features: [], agent: "scripted", heartbeat_ms: heartbeat });
  }

  /** Hello and check-in, as it should be; gives what the client checked in with. */
  async checkIn(session = "128hk8hapcxw8", urls: string[] = [], heartbeat = 30_000): Promise<any> {
    const hello = await this.until(kinds.hello);
    assert.deepEqual(decode(hello.subarray(1)), {
      protocol_min: 1,
      protocol_max: 1,
      features: [],
      agent: "greenroom-typescript/0.1.0",
    });
    this.hello(heartbeat);
    const checkIn = await this.until(kinds.checkIn);
    this.checkedIn(session, urls);
    return decode(checkIn.subarray(1));
  }

  checkedIn(session = "128hk8hapcxw8", urls: string[] = []): void {
    const servers = urls.length === 0 ? [] : [{ name: "s", urls }];
    const fields = { user: "guest-ann", name: "Ann", session, session_servers: servers, server_time_ms: 1 };
    this.say(kinds.checkedIn, fields);
  }

  closing(code: string): void {
    this.say(kinds.closing, { code, message: "a text" });
  }

  /** The connection breaks. */
  drop(): void {
    this.deliver.close();
  }
}

export function upOf(frame: Uint8Array): Up {
  const view = new DataView(frame.buffer, frame.byteOffset);
  const [channel, number] = [view.getUint32(1, true), view.getUint32(5, true)];
  return { kind: frame[0]!, channel, number, ack: view.getUint32(9, true), payload: frame.subarray(13) };
}

/** Lets everything happen that can happen now. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
}

export function joined(up_received: number, down_next: number, more: object = {}): object {
  const seat = { instance: ARENA, kind: "arena", incarnation: "000000000001a", channel: 7, seat: 3 };
  return { ...seat, up_received, down_next, tick_rate: 20, ...more };
}

/** All session servers that there are: a test takes what clients dial. */
export class Network {
  readonly #peers = new Queue<Peer>();
  /** Addresses where nobody listens. */
  readonly dead = new Set<string>();
  readonly dialled: string[] = [];

  get webSocket(): SocketConstructor {
    const network = this;
    return class implements Socket {
      binaryType = "blob";
      onopen: Socket["onopen"] = null;
      onmessage: Socket["onmessage"] = null;
      onclose: Socket["onclose"] = null;
      onerror: Socket["onerror"] = null;
      #peer: Peer | null = null;
      #isOpen = false;

      constructor(address: string, protocol: string) {
        network.dialled.push(address);
        setImmediate(() => {
          if (network.dead.has(address)) {
            this.onerror?.({ message: "nobody listens" });
            this.onclose?.({ code: 1006 });
            return;
          }
          this.#isOpen = true;
          this.#peer = new Peer(address, protocol, {
            message: (data) => {
              setImmediate(() => {
                if (this.#isOpen) this.onmessage?.({ data: this.binaryType === "arraybuffer" ? data : {} });
              });
            },
            close: () => setImmediate(() => this.#end()),
          });
          network.#peers.push(this.#peer);
          this.onopen?.({});
        });
      }

      #end(): void {
        if (!this.#isOpen) return;
        this.#isOpen = false;
        this.#peer?.took(null);
        this.onclose?.({ code: 1005 });
      }

      send(data: Uint8Array): void {
        assert.ok(this.#peer !== null, "sent before it was open");
        const frame = data.slice();
        if (this.#isOpen) setImmediate(() => this.#peer!.took(frame));
      }

      close(): void {
        setImmediate(() => this.#end());
      }
    };
  }

  accept(): Promise<Peer> {
    return this.#peers.next("a connection");
  }

  options(more: Partial<Options> = {}): Options {
    return { servers: [URL_A], auth: { scheme: "guest", name: "Ann" }, webSocket: this.webSocket, ...more };
  }

  /** A client that is checked in, and its connection. */
  async connected(more: Partial<Options> = {}, urls: string[] = []): Promise<[Client, Peer]> {
    const connecting = connect(this.options(more));
    const peer = await this.accept();
    await peer.checkIn(undefined, urls);
    return [await soon("the check-in", connecting), peer];
  }

  /** A client with a seat in the arena. */
  async seated(more: Partial<Options> = {}): Promise<[Client, Room, Peer]> {
    const [client, peer] = await this.connected(more);
    const joining = client.joinOrCreate("arena");
    const request = await peer.request();
    assert.equal(request.kind, kinds.joinOrCreate);
    peer.reply(request.id, kinds.joined, joined(0, 1));
    return [client, await soon("the seat", joining), peer];
  }
}
