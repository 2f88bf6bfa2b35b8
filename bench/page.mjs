// The arena's page in Chromium with 16 players: how evenly it draws, and what a frame costs. One figure a line.
//
// Usage: node bench/page.mjs [SECONDS]; `GREENROOM_BINARY` is the server, a release build for figures that are kept. The
// browser has no graphics card: what it draws, the processor does.

import { browse, enter, until, up } from "../tests/browser/harness.mjs";

const seconds = Number(process.argv[2] ?? 20);
const ends = [];
const run = { after: (end) => ends.push(end) };
try {
  const cluster = await up(run);
  const context = await (await browse(run)).newContext({ viewport: { width: 1280, height: 800 } });
  const page = await enter(context, `${cluster.url}arena/`, "Ann");
  void cluster.run("bots", "--users", "15", "--for", `${seconds + 30}s`, "--game", "arena", "--json");
  const players = () => page.evaluate(() => Object.keys(window.arena.drawn).length);
  await until("16 players", async () => (await players()) === 16);
  await page.mouse.move(900, 200);
  await page.mouse.down();
  await page.keyboard.down("KeyD");
  await page.evaluate(() => window.arena.frames.splice(0));
  // Taken away as they come: the page keeps the newest 1,200 only.
  const frames = [];
  const ends_at = performance.now() + seconds * 1000;
  while (performance.now() < ends_at) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    frames.push(...(await page.evaluate(() => window.arena.frames.splice(0))));
  }
  if ((await players()) !== 16) throw new Error("not all players stayed");
  const at = (values, part) => [...values].sort((a, b) => a - b)[Math.floor((values.length - 1) * part)].toFixed(2);
  const [intervals, works] = [frames.map(({ interval }) => interval), frames.map(({ work }) => work)];
  console.log(`frames ${frames.length}`);
  for (const [name, values] of [["frame_interval", intervals], ["frame_work", works]]) {
    console.log(`${name}_p50_ms ${at(values, 0.5)}`);
    console.log(`${name}_p99_ms ${at(values, 0.99)}`);
  }
} finally {
  for (const end of ends.reverse()) await end();
}
