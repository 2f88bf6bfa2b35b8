// The arena, played in real tabs.

import assert from "node:assert/strict";
import test, { after } from "node:test";

import { browse, enter, up, until } from "./harness.mjs";

const browser = await browse({ after });
const cluster = await up({ after });

/** The seat of the tab's own player, and where a tab draws the player of a seat. */
const seat = (page) => page.evaluate(() => window.arena.room.seat);
const drawn = (page, seat) => page.evaluate((seat) => window.arena.drawn[seat], seat);

/** Runs to the side where there is more room, until `watcher` has seen it; then stands still. Gives the seat. */
async function isSeenToRun(runner, watcher) {
  const own = await seat(runner);
  const before = await until("the other's player on the canvas", () => drawn(watcher, own));
  const [key, way] = before.x < 50 ? ["KeyD", 1] : ["KeyA", -1];
  await runner.keyboard.down(key);
  await until("the other's player to run", async () => ((await drawn(watcher, own)).x - before.x) * way > 4);
  await runner.keyboard.up(key);
  // Both draw it where the server has it, once it stands.
  await until("both tabs to agree", async () => {
    const there = await runner.evaluate(() => window.arena.room.state.players[window.arena.room.seat]);
    const places = [await drawn(runner, own), await drawn(watcher, own)];
    return places.every(({ x, y }) => Math.hypot(x - there.x, y - there.y) < 0.25);
  });
  return own;
}

test("two tabs in one arena see each other move", async () => {
  const context = await browser.newContext();
  const ann = await enter(context, `${cluster.url}arena/?key=1`, "Ann");
  const bo = await enter(context, `${cluster.url}arena/?key=1`, "Bo");
  const instance = (page) => page.evaluate(() => window.arena.room.instance);
  assert.equal(await instance(ann), await instance(bo));
  const seats = [await isSeenToRun(ann, bo), await isSeenToRun(bo, ann)];
  assert.notEqual(seats[0], seats[1]);
  for (const page of [ann, bo]) {
    assert.deepEqual((await page.locator("#scores span").allTextContents()).sort(), ["Ann", "Bo"]);
    assert.deepEqual(page.errors, []);
  }
});

test("who is shot in one tab is seen to fall in both, and gets up again", async () => {
  const context = await browser.newContext({ viewport: { width: 900, height: 900 } });
  const ann = await enter(context, `${cluster.url}arena/?key=2`, "Ann");
  const bo = await enter(context, `${cluster.url}arena/?key=2`, "Bo");
  const [hunter, prey] = [await seat(ann), await seat(bo)];
  const health = () => bo.evaluate((seat) => window.arena.room.state.players[seat].hp, prey);
  await ann.mouse.move(10, 10);
  let held = new Set();
  const hold = async (keys) => {
    for (const key of held) if (!keys.has(key)) await ann.keyboard.up(key);
    for (const key of keys) if (!held.has(key)) await ann.keyboard.down(key);
    held = keys;
  };
  await ann.mouse.down();
  await until("Bo to fall", async () => {
    const places = await ann.evaluate(() => window.arena.drawn);
    if (!places[hunter] || !places[prey]) return false; // Not drawn yet: its tab has not heard of it.
    const [dx, dy] = [places[prey].x - places[hunter].x, places[prey].y - places[hunter].y];
    // Nearer first; then aim. The canvas is square, and shows one's own player where the camera has it.
    const near = Math.hypot(dx, dy) < 12;
    const keys = near ? [] : [Math.abs(dx) > 4 ? (dx > 0 ? "KeyD" : "KeyA") : "", Math.abs(dy) > 4 ? (dy > 0 ? "KeyS" : "KeyW") : ""];
    await hold(new Set(keys.filter((key) => key !== "")));
    const to = await ann.evaluate((seat) => window.arena.onScreen(seat), prey);
    await ann.mouse.move(to.x, to.y);
    return (await health()) === 0;
  });
  await ann.mouse.up();
  await hold(new Set());
  await bo.waitForSelector("#fallen:not(.hidden)");
  for (const page of [ann, bo]) await page.waitForSelector("#feed li:has-text('Ann took down Bo')");
  await until("Bo to get up", async () => (await health()) === 100);
  await bo.waitForSelector("#fallen", { state: "hidden" });
  const hits = await bo.evaluate((seat) => window.arena.room.state.players[seat].score, hunter);
  assert.ok(hits >= 4, `${hits} hits`);
  assert.deepEqual([...ann.errors, ...bo.errors], []);
});

test("a thumb on a phone runs and shoots", async () => {
  const phone = { viewport: { width: 390, height: 780 }, hasTouch: true, isMobile: true };
  const page = await enter(await browser.newContext(phone), `${cluster.url}arena/?key=3`, "Cy");
  const own = await seat(page);
  const before = await until("the player on the canvas", () => drawn(page, own));
  const way = before.y < 50 ? 1 : -1;
  const touches = await page.context().newCDPSession(page);
  const thumbs = (type, touchPoints) => touches.send("Input.dispatchTouchEvent", { type, touchPoints });
  const [left, right] = [{ x: 90, y: 600, id: 1 }, { x: 300, y: 600, id: 2 }];
  await thumbs("touchStart", [left, right]);
  await thumbs("touchMove", [{ ...left, y: left.y + 40 * way }, { ...right, x: right.x - 40 }]);
  await until("the player to run", async () => ((await drawn(page, own)).y - before.y) * way > 3);
  await until("a shot to be gone", () => page.evaluate(() => window.arena.room.privateState.shots < 5));
  await thumbs("touchEnd", []);
  await until("the player to stand", () => page.evaluate(() => window.arena.room.privateState.running.every((part) => part === 0)));
  assert.deepEqual(page.errors, []);
});

test("the session server of a page is killed, and the page plays on with its seat", async (t) => {
  const cluster = await up(t, "--processes");
  const context = await browser.newContext();
  const ann = await enter(context, `${cluster.url}arena/?key=4`, "Ann");
  const bo = await enter(context, `${cluster.url}arena/?key=4`, "Bo");
  const before = await seat(ann);
  await isSeenToRun(ann, bo);
  const server = await ann.evaluate(() => window.arena.client.server);
  const line = cluster.said().split("\n").find((line) => line.includes(new URL(server).host) && line.includes("(process "));
  assert.ok(line, `no process listens on ${server}:\n${cluster.said()}`);
  const id = Number(/\(process (\d+)\)/.exec(line)[1]);
  const badge = () => ann.textContent("#badge");
  assert.equal(await badge(), "connected");
  // What the badge said meanwhile, since it may be back sooner than somebody looks.
  await ann.evaluate(() => {
    const badge = document.getElementById("badge");
    window.badges = [];
    new MutationObserver(() => window.badges.push(badge.textContent)).observe(badge, { childList: true });
  });
  process.kill(id, "SIGKILL");
  await until("the page to be back", async () => (await ann.evaluate(() => window.badges)).at(-1) === "connected");
  assert.equal((await ann.evaluate(() => window.badges))[0], "reconnecting…");
  assert.equal(await seat(ann), before);
  await isSeenToRun(ann, bo);
  await isSeenToRun(bo, ann);
  const stats = await ann.evaluate(() => window.arena.client.stats);
  assert.ok(stats.reconnects >= 1, JSON.stringify(stats));
  assert.deepEqual([stats.missed, stats.desyncs, stats.misbehaved], [0, 0, 0]);
  assert.deepEqual([...ann.errors, ...bo.errors], []);
});
