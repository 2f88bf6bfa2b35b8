// What strangers write is text, wherever a page shows it.

import assert from "node:assert/strict";
import test, { after } from "node:test";

import { browse, enter, tab, up } from "./harness.mjs";

const browser = await browse({ after });
const cluster = await up({ after });

const HOSTILE = "<img src=x onerror=alert(1)>";

/** Nothing that the name could have made is in the page. */
async function isText(page) {
  assert.equal(await page.locator("img[src='x'], script:not([src])").count(), 0);
  assert.deepEqual(page.errors, []);
}

test("a name full of HTML is shown as text in the arena, and executes nothing", async () => {
  const context = await browser.newContext();
  const hostile = await enter(context, `${cluster.url}arena/?key=names`, HOSTILE);
  const other = await enter(context, `${cluster.url}arena/?key=names`, "Ann");
  for (const page of [hostile, other]) {
    await page.locator("#scores span", { hasText: HOSTILE }).waitFor();
    await isText(page);
  }
});

test("a name full of HTML is shown as text in the lobby and at the table, and executes nothing", async () => {
  const context = await browser.newContext();
  const ann = await enter(context, `${cluster.url}duel/`, "Ann");
  const hostile = await enter(context, `${cluster.url}duel/`, HOSTILE);
  await hostile.click("#create");
  await ann.locator("#waiting b", { hasText: HOSTILE }).waitFor();
  await ann.click("#waiting li button");
  await ann.locator("#them .who b", { hasText: HOSTILE }).waitFor();
  await hostile.click("#leave");
  await ann.locator("#over-eyebrow", { hasText: HOSTILE }).waitFor();
  for (const page of [ann, hostile]) await isText(page);
});

test("control characters of a name reach nobody", async () => {
  const context = await browser.newContext();
  const bell = await enter(context, `${cluster.url}arena/?key=controls`, "be\u0007ll\u001b[31m");
  const ann = await enter(context, `${cluster.url}arena/?key=controls`, "Ann");
  await ann.locator("#scores span", { hasText: "bell" }).waitFor();
  const names = await ann.evaluate(() => Object.values(window.arena.room.state.players).map(({ name }) => name));
  assert.deepEqual(names.sort(), ["Ann", "bell[31m"]);
  for (const page of [bell, ann]) await isText(page);
});

test("what a page may do is said with it: no inline script runs, whoever wrote it", async () => {
  const page = await tab(await browser.newContext());
  const answer = await page.goto(cluster.url);
  assert.match(answer.headers()["content-security-policy"], /^default-src 'none'; script-src 'self';/);
  await page.evaluate(() => {
    const script = document.createElement("script");
    script.textContent = "window.ran = true";
    document.body.append(script);
  });
  assert.equal(await page.evaluate(() => window.ran), undefined);
});

test("the start page says who plays, as it changes", async () => {
  const context = await browser.newContext();
  const start = await tab(context);
  await start.goto(cluster.url);
  await start.locator("#arena-count", { hasText: "nobody is in yet" }).waitFor();
  await enter(context, `${cluster.url}arena/`, "Ann");
  await start.locator("#arena-count", { hasText: "1 player in 1 arena" }).waitFor();
  const bo = await enter(context, `${cluster.url}duel/`, "Bo");
  await bo.click("#create");
  await start.locator("#duel-count", { hasText: "1 waiting for an opponent" }).waitFor();
  assert.deepEqual(start.errors, []);
});
