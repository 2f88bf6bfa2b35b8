/** A WebSocket (RFC 6455, the client's half) over Node's own sockets, for a Node that has none. Not part of bundles. */

import { createHash, randomBytes } from "node:crypto";
import { connect as connectTcp, type Socket as TcpSocket } from "node:net";
import { connect as connectTls } from "node:tls";
import type { Socket, SocketConstructor } from "./socket.js";
import { DOWN_BYTES_MAX } from "./wire.js";

/** Longest answer to the handshake, in bytes. */
const ANSWER_BYTES_MAX = 16 * 1024;
/** How long in ms the other side may take to close. */
const CLOSE_WITHIN = 1000;
const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const [CONTINUED, TEXT, BINARY, CLOSE, PING, PONG] = [0x0, 0x1, 0x2, 0x8, 0x9, 0xa];

export class NodeSocket implements Socket {
  binaryType = "arraybuffer";
  onopen: Socket["onopen"] = null;
  onmessage: Socket["onmessage"] = null;
  onclose: Socket["onclose"] = null;
  onerror: Socket["onerror"] = null;
  readonly #tcp: TcpSocket;
  readonly #key = randomBytes(16).toString("base64");
  #state: "opening" | "open" | "closing" | "closed" = "opening";
  /** What came and is not looked at yet. */
  #chunks: Buffer[] = [];
  #length = 0;
  /** The parts of a message that comes in several frames. */
  #parts: Buffer[] = [];
  #partsType = CONTINUED;
  #code: number | undefined;
  #reason = "";

  /** One for which these certificates (PEM) vouch, and no others. */
  static trusting(certificates: string): SocketConstructor {
    return class extends NodeSocket {
      constructor(address: string, protocol: string) {
        super(address, protocol, certificates);
      }
    };
  }

  constructor(address: string, protocol: string, ca?: string) {
    const url = new URL(address);
    const isSecure = url.protocol === "wss:";
    const host = url.hostname.replace(/^\[|\]$/g, "");
    const port = Number(url.port) || (isSecure ? 443 : 80);
    const request =
      `GET ${url.pathname}${url.search} HTTP/1.1\r\nHost: ${url.host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
      `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${this.#key}\r\nSec-WebSocket-Protocol: ${protocol}\r\n\r\n`;
    const begin = (): void => void this.#tcp.write(request);
    this.#tcp = isSecure
      ? connectTls({ host, port, servername: /^[\d.]+$|:/.test(host) ? "" : host, ...(ca !== undefined && { ca }) }, begin)
      : connectTcp({ host, port }, begin);
    this.#tcp.setNoDelay(true);
    this.#tcp.on("data", (chunk) => this.#read(chunk, protocol));
    this.#tcp.on("error", (error) => this.#fail(error.message));
    this.#tcp.on("end", () => this.#tcp.end());
    this.#tcp.on("close", () => this.#closed());
  }

  send(data: Uint8Array): void {
    if (this.#state === "opening") throw new Error("the WebSocket is not open yet");
    if (this.#state === "open") this.#write(BINARY, data);
  }

  close(): void {
    if (this.#state === "open") {
      this.#write(CLOSE, Buffer.from([0x03, 0xe8])); // 1000: nothing is wrong.
      this.#tcp.end();
    } else if (this.#state === "opening") {
      this.#tcp.destroy();
    }
    if (this.#state !== "closed") this.#state = "closing";
    setTimeout(() => this.#tcp.destroy(), CLOSE_WITHIN).unref();
  }

  #closed(): void {
    if (this.#state === "closed") return;
    this.#state = "closed";
    this.onclose?.({ code: this.#code ?? 1006, reason: this.#reason });
  }

  #fail(message: string): void {
    if (this.#state !== "opening" && this.#state !== "open") return;
    this.#state = "closing";
    this.#tcp.destroy();
    this.onerror?.({ message });
  }

  #write(opcode: number, data: Uint8Array): void {
    const length = data.length;
    const head = length < 126 ? 2 : length < 0x10000 ? 4 : 10;
    const frame = Buffer.alloc(head + 4 + length);
    frame[0] = 0x80 | opcode;
    if (head === 2) frame[1] = 0x80 | length;
    else if (head === 4) {
      frame[1] = 0x80 | 126;
      frame.writeUInt16BE(length, 2);
    } else {
      frame[1] = 0x80 | 127;
      frame.writeBigUInt64BE(BigInt(length), 2);
    }
    const mask = randomBytes(4);
    frame.set(mask, head);
    for (let at = 0; at < length; at++) frame[head + 4 + at] = data[at]! ^ mask[at & 3]!;
    this.#tcp.write(frame);
  }

  #read(chunk: Buffer, protocol: string): void {
    this.#chunks.push(chunk);
    this.#length += chunk.length;
    if (this.#state === "opening") this.#answer(protocol);
    while (this.#state === "open" && this.#frame());
  }

  /** All that is there, in one piece. */
  #all(): Buffer {
    if (this.#chunks.length !== 1) this.#chunks = [Buffer.concat(this.#chunks)];
    return this.#chunks[0]!;
  }

  #drop(count: number): void {
    const rest = this.#all().subarray(count);
    this.#chunks = rest.length > 0 ? [rest] : [];
    this.#length = rest.length;
  }

  /** Reads the answer to the handshake, once all of it is there. */
  #answer(protocol: string): void {
    const bytes = this.#all();
    const end = bytes.indexOf("\r\n\r\n");
    if (end < 0) {
      if (bytes.length > ANSWER_BYTES_MAX) this.#fail("the answer to the handshake has no end");
      return;
    }
    const [status = "", ...lines] = bytes.toString("latin1", 0, end).split("\r\n");
    const headers = new Map(lines.map((line) => [line.split(":")[0]!.toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]));
    if (!/^HTTP\/1\.1 101\b/.test(status)) {
      // The reason is the body: a refusal as text.
      const body = bytes.toString("utf8", end + 4, end + 4 + 1024).trim();
      return this.#fail(`${status}${body === "" ? "" : `: ${body}`}`);
    }
    const accept = createHash("sha1").update(this.#key + GUID).digest("base64");
    if (headers.get("sec-websocket-accept") !== accept || headers.get("sec-websocket-protocol") !== protocol) {
      return this.#fail(`the server does not speak ${protocol}`);
    }
    this.#drop(end + 4);
    this.#state = "open";
    this.onopen?.({});
  }

  /** Takes one frame; `false` if it is not all there. */
  #frame(): boolean {
    if (this.#length < 2) return false;
    const bytes = this.#all();
    const [first, second] = [bytes[0]!, bytes[1]!];
    const opcode = first & 0x0f;
    const isFinal = (first & 0x80) !== 0;
    let [head, length] = [2, second & 0x7f];
    if (length >= 126) {
      head = length === 126 ? 4 : 10;
      if (bytes.length < head) return false;
      length = head === 4 ? bytes.readUInt16BE(2) : Number(bytes.readBigUInt64BE(2));
    }
    const isControl = opcode >= CLOSE;
    let total = length;
    if (!isControl) for (const part of this.#parts) total += part.length;
    if ((first & 0x70) !== 0 || (second & 0x80) !== 0 || (isControl && (!isFinal || length > 125))) {
      this.#fail("the server sent a frame that is none");
      return false;
    }
    if (total > DOWN_BYTES_MAX) {
      this.#fail(`the server sent a message of ${total} bytes`);
      return false;
    }
    if (bytes.length < head + length) return false;
    // A copy: what is kept of a frame should not keep all that came with it.
    const data = Buffer.from(bytes.subarray(head, head + length));
    this.#drop(head + length);
    this.#took(opcode, isFinal, data);
    return true;
  }

  #took(opcode: number, isFinal: boolean, data: Buffer): void {
    switch (opcode) {
      case PING:
        return this.#write(PONG, data);
      case PONG:
        return;
      case CLOSE:
        this.#code = data.length >= 2 ? data.readUInt16BE(0) : 1005;
        this.#reason = data.toString("utf8", 2);
        return this.close();
      case TEXT:
      case BINARY:
      case CONTINUED: {
        if ((opcode === CONTINUED) !== this.#parts.length > 0) return this.#fail("the server sent half a message");
        if (opcode !== CONTINUED) this.#partsType = opcode;
        this.#parts.push(data);
        if (!isFinal) return;
        const whole = Buffer.concat(this.#parts);
        this.#parts = [];
        const isBinary = this.#partsType === BINARY;
        const copied = new Uint8Array(whole).buffer;
        this.onmessage?.({ data: isBinary ? copied : whole.toString("utf8") });
        return;
      }
      default:
        this.#fail(`the server sent a frame of type ${opcode}`);
    }
  }
}
