/** Real servers: processes of the real binary, which end with the test. */

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { soon } from "./server.js";
import { root } from "./vectors.js";

const binary = process.env["GREENROOM_BINARY"] ?? join(root, "target", "debug", "greenroom");
/** How long in ms anything may take before a story fails: far longer than it takes. */
export const PATIENCE = 60_000;

/** One process. */
export class Server {
  readonly #child: ChildProcess;
  readonly #lines: string[] = [];
  #arrived: () => void = () => {};
  readonly ended: Promise<void>;

  constructor(args: readonly string[]) {
    assert.ok(existsSync(binary), `there is no ${binary}: \`cargo xtask test typescript\` builds it`);
    // Nothing of the surroundings may be a setting.
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("GREENROOM_")));
    this.#child = spawn(binary, args, { env, stdio: ["ignore", "pipe", "pipe"] });
    for (const stream of [this.#child.stdout!, this.#child.stderr!]) {
      createInterface({ input: stream }).on("line", (line) => {
        this.#lines.push(line);
        this.#arrived();
      });
    }
    this.ended = new Promise((resolve) => this.#child.on("close", () => resolve()));
    void this.ended.then(() => this.#arrived());
  }

  /** The first line that fits, once it is there. */
  async line(fits: RegExp): Promise<RegExpMatchArray> {
    const began = performance.now();
    for (;;) {
      for (const line of this.#lines) {
        const match = line.match(fits);
        if (match !== null) return match;
      }
      const isOver = this.#child.exitCode !== null || this.#child.signalCode !== null;
      const isLate = performance.now() - began > PATIENCE;
      assert.ok(!isOver && !isLate, `waited in vain for ${fits}:\n${this.#lines.join("\n")}`);
      await Promise.race([new Promise<void>((resolve) => (this.#arrived = resolve)), new Promise((resolve) => setTimeout(resolve, 1000))]);
    }
  }

  /** SIGKILL: it has no time to say anything. */
  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await soon("the end of a process", this.ended);
  }

  /** SIGTERM, as a supervisor sends it: it drains. */
  terminate(): void {
    this.#child.kill("SIGTERM");
  }
}

/** A cluster of one master, and as many session servers and game servers as are asked for. */
export class Cluster {
  readonly folder = mkdtempSync(join(tmpdir(), "greenroom-typescript-"));
  readonly servers: Server[] = [];
  readonly sessions: { server: Server; url: string }[] = [];
  #masters = "";

  static async start(sessions: number, games: number): Promise<Cluster> {
    const cluster = new Cluster();
    try {
      const any = "127.0.0.1:0";
      const master = cluster.#start(["master", "--listen", any, "--admin", any]);
      cluster.#masters = (await master.line(/^ready \S+ (\S+)/))[1]!;
      const starting = Array.from({ length: games }, async () => {
        await cluster.#start(["game", "--masters", cluster.#masters, "--labels", "bench"]).line(/^ready /);
      });
      for (let count = 0; count < sessions; count++) starting.push(cluster.startSession());
      await Promise.all(starting);
      return cluster;
    } catch (error) {
      await cluster.end();
      throw error;
    }
  }

  #start([role, ...args]: string[]): Server {
    const server = new Server([role!, "--data", this.folder, ...args]);
    this.servers.push(server);
    return server;
  }

  /** Behind TLS where there is a certificate. */
  async startSession(tls?: { certificate: string; key: string }): Promise<void> {
    const any = "127.0.0.1:0";
    const kept = Object.entries(tls ?? {}).flatMap(([name, pem]) => {
      const file = join(this.folder, `tls.${name}`);
      writeFileSync(file, pem);
      return [`--tls-${name}`, file];
    });
    const server = this.#start(["session", "--masters", this.#masters, "--tcp", any, "--ws", any, ...kept]);
    const url = (await server.line(/^ready .*(wss?:\/\/\S+)/))[1]!;
    this.sessions.push({ server, url });
  }

  get urls(): string[] {
    return this.sessions.map(({ url }) => url);
  }

  async end(): Promise<void> {
    await Promise.all(this.servers.map((server) => server.kill()));
    rmSync(this.folder, { recursive: true, force: true });
  }
}
