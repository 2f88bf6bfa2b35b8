// What the stories in a browser speak through: `greenroom up` as a process, and Chromium with its tabs. Everything that
// is waited for has a limit, and everything that was started ends with its test.

import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
const binary = process.env.GREENROOM_BINARY ?? join(root, "target/debug/greenroom");
const modules = process.env.GREENROOM_NODE_MODULES ?? join(root, "target/tools/node_modules");
export const require = createRequire(join(modules, "browser.js"));
const { chromium } = require("playwright-core");

/** How long in ms anything may take before a story fails: far longer than it takes. */
export const PATIENCE = 60_000;

/** Waits until something that `look` gives is as it should be, and gives it. */
export async function until(what, look, pause = 25) {
  const end = performance.now() + PATIENCE;
  let seen;
  while (performance.now() < end) {
    seen = await look();
    if (seen) return seen;
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  throw new Error(`waited in vain for ${what}; last seen: ${JSON.stringify(seen)}`);
}

/** A port from which on so many are free, of those that the system gives to nobody by itself. */
async function freePorts(count) {
  const isFree = (port) =>
    new Promise((resolve) => {
      const server = createServer().once("error", () => resolve(false));
      server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
    });
  for (let tries = 0; tries < 200; tries++) {
    const first = 10_000 + Math.floor(Math.random() * 400) * 25;
    const free = await Promise.all(Array.from({ length: count }, (_, at) => isFree(first + at)));
    if (free.every(Boolean)) return first;
  }
  throw new Error("no ports are free");
}

/** `greenroom up`, with what it prints; ends with the test or file `t`. */
export async function up(t, ...flags) {
  const data = mkdtempSync(join(tmpdir(), "greenroom-browser-"));
  const first = await freePorts(14);
  const at = (port) => `127.0.0.1:${first + port}`;
  const ports = ["--master-listen", at(0), "--admin", at(1), "--session-tcp", at(2), "--session-ws", at(3)];
  const settings = Object.entries(process.env).filter(([name]) => !name.startsWith("GREENROOM_"));
  const child = spawn(binary, ["up", "--data", data, ...ports, ...flags], { env: Object.fromEntries(settings) });
  const exited = new Promise((resolve) => child.once("exit", resolve));
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (bytes) => (said += bytes));
  t.after(async () => {
    child.kill("SIGTERM");
    const killed = setTimeout(() => child.kill("SIGKILL"), 15_000);
    await exited;
    clearTimeout(killed);
    rmSync(data, { recursive: true, force: true });
  });
  const url = await until("the pages' address", () => {
    if (child.exitCode !== null) throw new Error(`up ended:\n${said}`);
    return said.includes("Ctrl-C drains") && /Play in the browser: +(\S+)/.exec(said)?.[1];
  });
  return {
    url,
    admin: at(1),
    /** What lets an operator act. */
    token: () => readFileSync(join(data, "admin.token"), "utf8").trim(),
    said: () => said,
    /** Ends it without a word. */
    kill: () => child.kill("SIGKILL"),
    /** Starts a command of the binary beside it, and gives what it printed once it ended. */
    run: (...args) =>
      new Promise((resolve) => {
        let out = "";
        const beside = spawn(binary, [...args, "--admin", at(1)], { env: Object.fromEntries(settings) });
        beside.stdout.on("data", (bytes) => (out += bytes));
        t.after(() => beside.kill());
        beside.once("exit", () => resolve(out));
      }),
  };
}

/** Chromium, without anything that it does by itself. */
export async function browse(t) {
  const args = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"];
  const browser = await chromium.launch({
    executablePath: process.env.GREENROOM_CHROMIUM ?? "/usr/bin/chromium",
    args: [...args, "disable-component-update", "disable-sync"].map((arg) => `--${arg}`),
    timeout: PATIENCE,
  });
  t.after(() => browser.close());
  return browser;
}

/** A tab, which says what goes wrong in it, of what its console complains, and what came over its WebSockets. */
export async function tab(context) {
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const [errors, complaints, received] = [[], [], []];
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => {
    if (message.type() === "error") complaints.push(message.text());
  });
  page.on("dialog", (dialog) => {
    errors.push(`a dialog opened: ${dialog.message()}`);
    void dialog.dismiss();
  });
  page.on("websocket", (socket) => {
    socket.on("framereceived", ({ payload }) => received.push(Buffer.from(payload)));
  });
  return Object.assign(page, { errors, complaints, received });
}

/** Opens a game in a new tab, and goes in by its door. */
export async function enter(context, url, name) {
  const page = await tab(context);
  await page.goto(url);
  await page.fill("#name", name);
  await page.click("#door-form button");
  await page.waitForSelector("#door", { state: "hidden" });
  return page;
}
