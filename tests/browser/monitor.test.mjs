// The monitor in real tabs: alive while bots play, careful with actions, and unmoved by what players call themselves.

import assert from "node:assert/strict";
import test, { after, afterEach } from "node:test";

import { browse, enter, tab, until, up } from "./harness.mjs";

const browser = await browse({ after });
const cluster = await up({ after });
const monitor = `http://${cluster.admin}`;

const BOTS = 30;
const HOSTILE = "<img src=x onerror=alert(1)>";
const PHONE = { width: 390, height: 844 };

/** Tabs of each test go with it: what is drawn in one that nobody looks at any more slows the others down. */
const contexts = [];
afterEach(() => Promise.all(contexts.splice(0).map((context) => context.close())));

async function fresh(options = {}) {
  contexts.push(await browser.newContext(options));
  return contexts.at(-1);
}

/** A tab of the monitor. */
async function look(path, options = {}) {
  const page = await tab(await fresh(options));
  await page.goto(monitor + path);
  return page;
}

/** Nothing went wrong in the page, and its console has nothing to say. */
function isClean(page, complaints = []) {
  assert.deepEqual(page.errors, []);
  assert.deepEqual(page.complaints, complaints);
}

/** The arena in which this tab plays. */
const instanceOf = (page) => page.evaluate(() => window.arena.room.instance);

/** Presses a button that acts, and answers what is asked. Gives what the page says then. */
async function act(page, button, token) {
  await button.click();
  await page.waitForSelector("#confirm[open]");
  if (await page.locator("#token-field").isVisible()) await page.fill("#token", token);
  await page.click("#confirm-yes");
  const said = page.locator("#toast.shown, #confirm-problem:not([hidden])");
  await said.waitFor();
  return said.textContent();
}

test("the overview lives while bots play: numbers move, charts grow, and what must be zero is", async () => {
  const page = await look("/");
  const log = await look("/logs?kind=check_in");
  await log.locator("#connection", { hasText: "live" }).waitFor();
  assert.equal(await log.locator("#rows tr").count(), 0);
  const bots = cluster.run("bots", "--users", String(BOTS), "--for", "15s", "--game", "arena");

  await page.locator(".card[href='/users'] output", { hasText: new RegExp(`^${BOTS}$`) }).waitFor();
  await page.locator(".chart[data-key='requests'] output", { hasText: /^[1-9].*\/s$/ }).waitFor();
  assert.equal(await page.locator(".chart canvas").count(), 8);
  const points = () => page.evaluate(() => charts.times.length);
  const before = await points();
  await until("three more points of each chart", async () => (await points()) >= before + 3);
  const columns = await page.evaluate(() => Object.fromEntries(charts.columns));
  assert.equal(Math.max(...columns.users), BOTS);
  assert.ok(Math.max(...columns.seats) > 0 && Math.max(...columns.check_ins) > 0, JSON.stringify(columns));
  for (const column of Object.values(columns)) assert.ok(column.length >= before + 3);
  // What was moving stands still again, on a page that nobody has loaded anew.
  const said = await bots;
  await page.locator(".card[href='/users'] output", { hasText: /^0$/ }).waitFor();
  assert.deepEqual(await page.locator(".zero output").allTextContents(), ["0", "0", "0", "0", "0", "0"], said);

  // Each bot has checked in once, as the log's tail told a page that was open before.
  await until("all check-ins in the log", async () => (await log.locator("#rows tr").count()) === BOTS);
  assert.deepEqual(new Set(await log.locator("#rows .kind").allTextContents()), new Set(["check_in"]));
  for (const one of [page, log]) isClean(one);
});

test("the log is narrowed, paged back, and held while somebody reads", async () => {
  const page = await look("/logs?role=master");
  const rows = page.locator("#rows tr");
  await rows.first().waitFor();
  const first = await rows.allTextContents();
  await page.click("[rel=next]");
  await page.waitForSelector("[rel=first]");
  const older = await rows.allTextContents();
  assert.equal(first.length, 100);
  assert.ok(older.length > 0 && !older.some((row) => first.includes(row)));
  await page.click("[rel=first]");

  await page.selectOption("[name=severity]", "info");
  await page.fill("[name=q]", "name HELD");
  await page.click(".filters button");
  await page.waitForURL(/q=name/);
  await page.locator("#connection", { hasText: "live" }).waitFor();
  await page.click("#hold");
  const player = await enter(await fresh(), `${cluster.url}arena/?key=held`, "held back");
  await page.locator("#held", { hasText: "1 newer wait" }).waitFor();
  assert.equal(await rows.count(), 0);
  await page.click("#hold");
  await rows.filter({ hasText: "name held back" }).waitFor();
  await player.close();
  isClean(page);
});

test("an instance's page shows what the instance itself costs", async () => {
  const player = await enter(await fresh(), `${cluster.url}arena/?key=measured`, "Ann");
  const page = await look(`/instances/${await instanceOf(player)}`);
  const measures = page.locator("#measures");
  await measures.locator("dd", { hasText: /^the newest [1-9]\d* steps$/ }).waitFor();
  await measures.locator("dd", { hasText: /bytes\/s$/ }).waitFor();
  assert.match(await measures.textContent(), /State, as stored[\d\u202f]+ bytes/);
  isClean(page);
  await player.close();
});

test("with a wrong token nothing is done, and the page says so", async () => {
  const player = await enter(await fresh(), `${cluster.url}arena/?key=wrong`, "Ann");
  const page = await look(`/instances/${await instanceOf(player)}`);
  const said = await act(page, page.locator("button.act", { hasText: "Destroy" }), "0".repeat(64));
  assert.match(said, /^Nothing was done\. the token is not this cluster's: .*admin\.token.* \(unauthorized\)$/);
  assert.ok(await page.locator("#token-field").isVisible(), "it is asked for again");
  await page.click("#confirm-no");
  // The arena goes on: who runs in it comes from the spot.
  const place = () => player.evaluate(() => window.arena.room.state.players[window.arena.room.seat].x);
  const before = await place();
  await player.keyboard.down(before < 50 ? "KeyD" : "KeyA");
  await until("the player to run", async () => Math.abs((await place()) - before) > 2);
  await page.reload();
  await page.locator("h1 .state", { hasText: "running" }).waitFor();
  isClean(page, ["Failed to load resource: the server responded with a status of 401 (Unauthorized)"]);
  assert.deepEqual(player.errors, []);
});

test("an instance is destroyed once that is confirmed with the token, and its players are told", async () => {
  const player = await enter(await fresh(), `${cluster.url}arena/?key=destroyed`, "Ann");
  const id = await instanceOf(player);
  const page = await look(`/instances/${id}`);
  const button = page.locator("button.act", { hasText: "Destroy" });
  await button.click();
  await page.click("#confirm-no");
  assert.ok(!(await page.locator("#confirm").isVisible()));
  assert.equal(await instanceOf(player), id);

  await button.click();
  await page.fill("#token", cluster.token());
  await page.click("#confirm-yes");
  await page.waitForURL(`${monitor}/instances`);
  await player.locator("#trouble", { hasText: "an operator closed the instance" }).waitFor();
  await page.goto(`${monitor}/instances/${id}`);
  await page.locator(".empty", { hasText: "The master says no" }).waitFor();
  await page.locator("#rows .kind", { hasText: "directory_destroy" }).waitFor();
  isClean(page);
  assert.deepEqual(player.errors, []);
});

test("a user is kicked with the token that the tab remembers, and is told", async () => {
  const player = await enter(await fresh(), `${cluster.url}arena/?key=kicked`, "Kicked");
  const page = await look(`/instances/${await instanceOf(player)}`);
  const kick = page.locator("tr", { hasText: "Kicked" }).locator("button.act");
  assert.equal(await act(page, kick, cluster.token()), "Done: Kick Kicked");
  await player.locator("#trouble, #badge", { hasText: "an operator ended the session" }).first().waitFor();
  await page.goto(`${monitor}/users?q=${encodeURIComponent('name = "Kicked"')}`);
  await page.locator(".empty").waitFor();
  isClean(page);
});

test("names full of HTML are text on every page, and nothing in them is executed", async () => {
  const player = await enter(await fresh(), `${cluster.url}arena/?key=hostile`, HOSTILE);
  const id = await instanceOf(player);
  for (const path of ["/users", `/instances/${id}`, "/logs", `/logs?q=${encodeURIComponent(HOSTILE)}`]) {
    const page = await look(path);
    await page.locator("td", { hasText: HOSTILE }).first().waitFor();
    // What asks before an action says the name too.
    const kick = page.locator("tr", { hasText: HOSTILE }).locator("button.act");
    if ((await kick.count()) > 0) {
      await kick.first().click();
      await page.locator("#confirm-title", { hasText: HOSTILE }).waitFor();
    }
    assert.equal(await page.locator("img[src='x'], script:not([src])").count(), 0);
    isClean(page);
  }
  // The tail is put into a page that is open already.
  const tail = await look("/logs?kind=check_in");
  await tail.locator("#connection", { hasText: "live" }).waitFor();
  const late = "<script>alert(2)</script>";
  await enter(await fresh(), `${cluster.url}arena/?key=hostile`, late);
  await tail.locator("#rows td", { hasText: late }).waitFor();
  assert.equal(await tail.locator("img[src='x'], script:not([src])").count(), 0);
  isClean(tail);
});

test("each page fits a phone and has nothing to complain of", async () => {
  const player = await enter(await fresh(), `${cluster.url}arena/?key=phone`, "A rather long name for a phone");
  const paths = ["/", "/users", "/instances", "/servers", "/logs", `/instances/${await instanceOf(player)}`];
  for (const path of [...paths, "/users?q=nonsense+%3D", "/instances/none", "/nowhere"]) {
    const page = await look(path, { viewport: PHONE, hasTouch: true, isMobile: true });
    await page.waitForLoadState("load");
    const wide = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.deepEqual(wide, [PHONE.width, PHONE.width], path);
    const missing = path === "/nowhere" ? ["Failed to load resource: the server responded with a status of 404 (Not Found)"] : [];
    isClean(page, missing);
  }
});

test("a page whose master is gone says since when, and that nobody knows what became of an action", async (t) => {
  const other = await up(t);
  const page = await tab(await fresh());
  await page.goto(`http://${other.admin}/servers`);
  const token = other.token();
  other.kill();
  await page.locator("#lost", { hasText: "No connection since" }).waitFor();
  assert.equal(await page.textContent("#connection"), "lost");
  const said = await act(page, page.locator("button.act").first(), token);
  assert.match(said, /^The master can't be reached, and nobody knows whether it was done/);
  assert.deepEqual(page.errors, []);
});

test("a server that is drained says so and takes nothing new", async () => {
  const page = await look("/servers?q=" + encodeURIComponent('role = "game"'));
  const drain = page.locator("button.act", { hasText: "Drain" });
  assert.match(await act(page, drain, cluster.token()), /^Done: Drain game-/);
  await page.locator(".state", { hasText: "draining" }).waitFor();
  const late = await tab(await fresh());
  await late.goto(`${cluster.url}arena/?key=drained`);
  await late.fill("#name", "Late");
  await late.click("#door-form button");
  await late.locator("#trouble", { hasText: /\S/ }).waitFor();
  assert.ok(await late.locator("#door").isVisible());
  isClean(page);
});
