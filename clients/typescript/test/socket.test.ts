/** The WebSocket for a Node that has none, against a server that the test plays byte by byte. */

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { createServer, type Server, type Socket as Tcp } from "node:net";
import { test } from "node:test";
import { createServer as createTlsServer } from "node:tls";
import { connect, NoServerError } from "../src/index.js";
import { encode } from "../src/msgpack.js";
import { NodeSocket } from "../src/socket-node.js";
import { kinds } from "../src/wire.js";
import { CERTIFICATE, KEY } from "./certificate.js";
import { Queue, soon } from "./server.js";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/** One connection as the server has it. */
class Peer {
  readonly bytes = new Queue<number>();
  readonly ended: Promise<void>;

  constructor(readonly tcp: Tcp) {
    tcp.on("data", (chunk) => {
      for (const byte of chunk) this.bytes.push(byte);
    });
    tcp.on("error", () => {});
    this.ended = new Promise((resolve) => tcp.on("close", () => resolve()));
  }

  async take(count: number): Promise<Buffer> {
    const taken = Buffer.alloc(count);
    for (let at = 0; at < count; at++) taken[at] = await this.bytes.next("a byte");
    return taken;
  }

  /** The request of the handshake. */
  async request(): Promise<string> {
    let text = "";
    while (!text.endsWith("\r\n\r\n")) text += (await this.take(1)).toString("latin1");
    return text;
  }

  answer(request: string, more = "Sec-WebSocket-Protocol: greenroom.v1\r\n"): void {
    const key = /Sec-WebSocket-Key: (\S+)/.exec(request)![1]!;
    const accept = createHash("sha1").update(key + GUID).digest("base64");
    const head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
    this.tcp.write(`${head}Sec-WebSocket-Accept: ${accept}\r\n${more}\r\n`);
  }

  async open(): Promise<void> {
    this.answer(await this.request());
  }

  write(opcode: number, data: Uint8Array, isFinal = true): void {
    this.tcp.write(framed(opcode, data, isFinal));
  }

  /** A frame of the client, unmasked. */
  async frame(): Promise<{ opcode: number; data: Buffer }> {
    const [first, second] = await this.take(2);
    assert.ok((second! & 0x80) !== 0, "clients mask what they send");
    let length = second! & 0x7f;
    if (length === 126) length = (await this.take(2)).readUInt16BE();
    else if (length === 127) length = Number((await this.take(8)).readBigUInt64BE());
    const mask = await this.take(4);
    const data = await this.take(length);
    return { opcode: first! & 0x0f, data: data.map((byte, at) => byte ^ mask[at & 3]!) as Buffer };
  }
}

function framed(opcode: number, data: Uint8Array, isFinal = true): Buffer {
  const head = Buffer.alloc(data.length < 126 ? 2 : data.length < 65536 ? 4 : 10);
  head[0] = (isFinal ? 0x80 : 0) | opcode;
  head[1] = data.length < 126 ? data.length : data.length < 65536 ? 126 : 127;
  if (head.length === 4) head.writeUInt16BE(data.length, 2);
  if (head.length === 10) head.writeBigUInt64BE(BigInt(data.length), 2);
  return Buffer.concat([head, data]);
}

async function listening(): Promise<{ url: string; accept: () => Promise<Peer>; server: Server }> {
  const peers = new Queue<Peer>();
  const server = createServer((tcp) => peers.push(new Peer(tcp)));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  return { url: `ws://127.0.0.1:${port}/path?query`, accept: () => peers.next("a connection"), server };
}

/** The same behind TLS. */
async function securely(): Promise<{ port: number; accept: () => Promise<Peer>; server: Server }> {
  const peers = new Queue<Peer>();
  const server = createTlsServer({ cert: CERTIFICATE, key: KEY }, (tcp) => peers.push(new Peer(tcp)));
  server.on("tlsClientError", () => {});
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { port: (server.address() as { port: number }).port, accept: () => peers.next("a connection"), server };
}

/** A socket, and what it tells. */
function opened(url: string): { socket: NodeSocket; told: Queue<unknown[]> } {
  const socket = new NodeSocket(url, "greenroom.v1");
  const told = new Queue<unknown[]>();
  socket.onopen = () => told.push(["open"]);
  socket.onmessage = ({ data }) => told.push(["message", data instanceof ArrayBuffer ? Buffer.from(data).toString("hex") : data]);
  socket.onerror = ({ message }) => told.push(["error", message]);
  socket.onclose = ({ code, reason }) => told.push(["close", code, reason]);
  return { socket, told };
}

/** A frame of a session server. */
const said = (kind: number, fields: object): Buffer => framed(2, Buffer.concat([Buffer.of(kind), encode(fields)]));

/** What a session server says to who gets in. */
const CHECKED_IN = Buffer.concat([
  said(kinds.serverHello, { protocol: 1, features: [], agent: "", heartbeat_ms: 1000 }),
  said(kinds.checkedIn, { user: "u", name: "N", session: "s", session_servers: [], server_time_ms: 1 }),
]);

test("messages of any length and in any number of parts arrive whole, and pings are answered", async () => {
  const { url, accept, server } = await listening();
  const { socket, told } = opened(url);
  const peer = await accept();
  const request = await peer.request();
  assert.match(request, /^GET \/path\?query HTTP\/1\.1\r\nHost: 127\.0\.0\.1:\d+\r\n/);
  assert.match(request, /Sec-WebSocket-Protocol: greenroom\.v1\r\n/);
  assert.doesNotMatch(request, /Origin|Sec-WebSocket-Extensions/);
  peer.answer(request);
  assert.deepEqual(await told.next("the opening"), ["open"]);
  for (const length of [0, 1, 125, 126, 65535, 65536, 300_000]) {
    const data = randomBytes(length);
    peer.write(2, data);
    assert.deepEqual(await told.next("a message"), ["message", data.toString("hex")]);
    socket.send(data);
    const { opcode, data: sent } = await peer.frame();
    assert.deepEqual([opcode, sent.equals(data)], [2, true]);
  }
  // In parts, with a ping between them, byte by byte.
  const parts = Buffer.concat([framed(2, Buffer.from("ab"), false), framed(9, Buffer.from("?")), framed(0, Buffer.from("c"))]);
  for (const byte of parts) peer.tcp.write(Buffer.of(byte));
  assert.deepEqual(await peer.frame(), { opcode: 10, data: Buffer.from("?") });
  assert.deepEqual(await told.next("a message"), ["message", Buffer.from("abc").toString("hex")]);
  // Several at once.
  peer.tcp.write(Buffer.concat([framed(2, Buffer.of(1)), framed(10, Buffer.of()), framed(1, Buffer.from("é"))]));
  assert.deepEqual(await told.next("a message"), ["message", "01"]);
  assert.deepEqual(await told.next("a text"), ["message", "é"]);
  peer.write(8, Buffer.concat([Buffer.of(0x03, 0xe9), Buffer.from("bye")]));
  assert.equal((await peer.frame()).opcode, 8);
  assert.deepEqual(await told.next("the end"), ["close", 1001, "bye"]);
  server.close();
});

test("an answer that is no WebSocket of ours is an error with the server's words", async () => {
  const answers: [string | ((peer: Peer, request: string) => void), RegExp][] = [
    ["HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\norigin_denied: no", /403 Forbidden: origin_denied: no/],
    ["HTTP/1.1 200 OK\r\n\r\n", /200 OK/],
    ["x".repeat(20_000), /has no end/],
    ["HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: wrong\r\n\r\n", /does not speak greenroom\.v1/],
    [(peer, request) => peer.answer(request, ""), /does not speak greenroom\.v1/],
    [(peer) => peer.tcp.destroy(), /./],
  ];
  for (const [answer, error] of answers) {
    const { url, accept, server } = await listening();
    const { told } = opened(url);
    const peer = await accept();
    const request = await peer.request();
    if (typeof answer === "string") peer.tcp.write(answer);
    else answer(peer, request);
    const [what, message] = await told.next("the error");
    if (what === "error") assert.match(String(message), error);
    if (what !== "close") assert.equal((await told.next("the end"))[0], "close");
    server.close();
  }
});

test("frames that no server may send end the conversation, and none is waited for that is too long", async () => {
  const attacks: [Buffer, RegExp][] = [
    [Buffer.of(0xc2, 0), /is none/], // A bit of an extension.
    [Buffer.of(0x82, 0x80, 0, 0, 0, 0), /is none/], // Masked.
    [Buffer.of(0x09, 0), /is none/], // A ping in parts.
    [Buffer.concat([Buffer.of(0x89, 126, 0, 126), Buffer.alloc(126)]), /is none/],
    [Buffer.of(0x83, 0), /of type 3/],
    [framed(0, Buffer.of(1)), /half a message/],
    [Buffer.concat([framed(2, Buffer.of(1), false), framed(2, Buffer.of(1))]), /half a message/],
    [Buffer.of(0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0), /a message of 4294967296 bytes/],
    [Buffer.of(0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), /a message of \d+ bytes/],
    [Buffer.concat([framed(2, Buffer.alloc(1_000_000), false), framed(0, Buffer.alloc(100_000))]), /a message of 1100000 bytes/],
  ];
  for (const [attack, error] of attacks) {
    const { url, accept, server } = await listening();
    const { told } = opened(url);
    const peer = await accept();
    await peer.open();
    await told.next("the opening");
    peer.tcp.write(attack);
    const [what, message] = await told.next("the error");
    assert.equal(what, "error");
    assert.match(String(message), error);
    assert.equal((await told.next("the end"))[0], "close");
    await soon("the end of the connection", peer.ended);
    server.close();
  }
});

test("a closed socket says nothing more, whenever it is closed", async () => {
  const { url, accept, server } = await listening();
  const early = opened(url);
  early.socket.close();
  assert.deepEqual(await early.told.next("the end"), ["close", 1006, ""]);
  const { socket, told } = opened(url);
  assert.throws(() => socket.send(Buffer.of(1)), /not open yet/);
  let peer = await accept();
  while (peer.tcp.destroyed) peer = await accept();
  await peer.open();
  await told.next("the opening");
  socket.close();
  socket.send(Buffer.of(1));
  assert.deepEqual(await peer.frame(), { opcode: 8, data: Buffer.of(0x03, 0xe8) });
  peer.write(2, Buffer.of(1));
  peer.tcp.end();
  assert.equal((await told.next("the end"))[0], "close");
  assert.equal(told.length, 0);
  server.close();
});

test("a client plays over it, and what a refused handshake says is among the reasons", async () => {
  const { url, accept, server } = await listening();
  const connecting = connect({ servers: [url], auth: { scheme: "guest" }, webSocket: NodeSocket });
  const denied = await accept();
  await denied.request();
  denied.tcp.end("HTTP/1.1 403 Forbidden\r\n\r\norigin_denied: not from here");
  const peer = await accept();
  await peer.open();
  assert.equal((await peer.frame()).data[0], kinds.hello);
  assert.equal((await peer.frame()).data[0], kinds.checkIn);
  // All in one piece: what comes after the check-in is not lost.
  const servers = { session_servers: [{ name: "b", urls: ["ws://b.example:1"] }] };
  const closing = said(kinds.closing, { code: "kicked", message: "you are out" });
  peer.tcp.write(Buffer.concat([CHECKED_IN, said(0x87, servers), closing]));
  const client = await soon("the check-in", connecting);
  const ended = new Promise<string>((resolve) => client.on("ended", ({ code }) => resolve(code)));
  assert.equal(await soon("the end", ended), "kicked");
  await soon("the end of the connection", peer.ended);
  server.close();
});

test("over TLS it plays with a server that the given certificate vouches for, and with no other", async () => {
  const { port, accept, server } = await securely();
  const attempt = (host: string, trust?: string) =>
    connect({ servers: [`wss://${host}:${port}`], auth: { scheme: "guest" }, connectMs: 2000, ...(trust && { trust }) });
  try {
    const connecting = attempt("127.0.0.1", CERTIFICATE);
    const peer = await accept();
    await peer.open();
    assert.equal((await peer.frame()).data[0], kinds.hello);
    peer.tcp.write(CHECKED_IN);
    const client = await soon("the check-in", connecting);
    assert.equal(client.server, `wss://127.0.0.1:${port}/`);
    await client.close();
    const refused: [() => Promise<unknown>, RegExp][] = [
      [() => attempt("127.0.0.1"), /self[- ]signed certificate/],
      [() => attempt("localhost", CERTIFICATE), /altnames/],
    ];
    for (const [attempted, why] of refused) {
      await assert.rejects(attempted, (error) => error instanceof NoServerError && why.test(error.message));
    }
  } finally {
    server.close();
  }
});
