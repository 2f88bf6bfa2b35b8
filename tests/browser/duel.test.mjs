// The duel, played in real tabs to its end.

import assert from "node:assert/strict";
import test, { after } from "node:test";

import { browse, enter, until, up } from "./harness.mjs";
import { ofSeat, read, SHARED } from "./wire.mjs";

const browser = await browse({ after });
const cluster = await up({ after });

const CARDS = ["Strike", "Pierce", "Guard", "Mend", "Leech", "Focus", "Venom"];
const seat = (page) => page.evaluate(() => window.duel.room.seat);

/** Two tabs at one table: the second has found the first in its lobby, which is a live search. */
async function seated() {
  const context = await browser.newContext();
  const bo = await enter(context, `${cluster.url}duel/`, "Bo");
  assert.equal(await bo.locator("#waiting li", { hasText: "Ann" }).count(), 0);
  const ann = await enter(context, `${cluster.url}duel/`, "Ann");
  await ann.click("#create");
  // It was open before: nobody loads it again.
  await bo.click("#waiting li:has-text('Ann') button");
  for (const page of [ann, bo]) await page.waitForSelector("#hand .card");
  return { context, ann, bo };
}

/** Plays the card at this place of the hand, of whoever's turn it is. */
async function play(pages, at = 0) {
  const before = await pages[0].evaluate(() => window.duel.room.state.turns);
  const onTurn = await until("somebody's turn", async () => {
    for (const page of pages) if ((await page.locator("#hand button:not([disabled])").count()) > 0) return page;
    return null;
  });
  const cards = onTurn.locator("#hand button:not([disabled])");
  await cards.nth(Math.min(at, (await cards.count()) - 1)).click();
  for (const page of pages) {
    await until("the turn to be over", () => page.evaluate((turns) => window.duel.room.state.turns > turns, before));
  }
}

const isOver = (page) => page.locator("#over:not(.hidden)").isVisible();

test("a duel is played to its end in two tabs, and neither page ever receives a card of the other's hand", async () => {
  const { ann, bo } = await seated();
  const pages = [ann, bo];
  const seats = await Promise.all(pages.map(seat));
  while (!(await isOver(ann))) await play(pages);
  for (const page of pages) await page.waitForFunction(() => document.getElementById("stored").textContent !== "");

  const state = await ann.evaluate(() => window.duel.room.state);
  const verdicts = await Promise.all(pages.map((page) => page.textContent("#verdict")));
  const expected = seats.map((seat) => (state.winner === null ? "A draw" : state.winner === seat ? "Victory" : "Defeat"));
  assert.deepEqual(verdicts, expected);

  const wires = pages.map(({ received }) => read(received));
  for (const [at, { messages, views, others }] of wires.entries()) {
    // Nothing but what everybody sees, what this seat sees, and what was played comes with a card.
    assert.deepEqual([...views.keys()].sort(), [SHARED, ofSeat(seats[at])].sort(), "a view of somebody else's");
    for (const card of CARDS) {
      assert.ok(!JSON.stringify(views.get(SHARED)).includes(card), `what everybody sees names ${card}`);
      assert.ok(!others.some((frame) => frame.includes(card)), `a frame that is no view names ${card}`);
    }
    // What this seat sees is its own hand and not the other's: each card that it played was the first of it.
    const hands = views.get(ofSeat(seats[at]));
    const played = messages.filter(({ message }) => message.Played?.[0] === seats[at]);
    assert.ok(played.length > 3);
    for (const { tick, message } of played) {
      const { state: hand } = hands.findLast((hand) => hand.tick < tick);
      assert.equal(hand[0], message.Played[1]);
    }
    const results = messages.filter(({ message }) => "Result" in message);
    assert.equal(results.length, 1);
    assert.equal(results[0].message.Result[1], state.winner);
    assert.equal(messages.length, state.turns + 1);
  }
  assert.deepEqual([...ann.errors, ...bo.errors], []);
});

test("two who want a rematch meet again, and nobody else sees it", async () => {
  const { context, ann, bo } = await seated();
  await bo.click("#leave");
  await ann.waitForSelector("#over:not(.hidden)");
  assert.equal(await ann.textContent("#verdict"), "Victory");
  await bo.waitForSelector("#lobby:not(.hidden)");
  // Bo is in the lobby and sees no duel of Ann's, who waits for a rematch.
  const cy = await enter(context, `${cluster.url}duel/`, "Cy");
  await ann.click("#rematch");
  await until("Ann to wait", async () => (await ann.textContent("#turn")).startsWith("Waiting"));
  await cy.click("#create");
  await bo.waitForSelector("#waiting li:has-text('Cy')");
  assert.equal(await bo.locator("#waiting li").count(), 1);
  assert.deepEqual([...ann.errors, ...bo.errors, ...cy.errors], []);
});

test("a page that is loaded again finds its hand as it was", async () => {
  const { ann, bo } = await seated();
  await play([ann, bo]);
  const hand = () => ann.locator("#hand h3").allTextContents();
  const before = await hand();
  await ann.reload();
  await ann.waitForSelector("#hand .card");
  assert.deepEqual(await hand(), before);
  await play([ann, bo]);
  assert.deepEqual([...ann.errors, ...bo.errors], []);
});
