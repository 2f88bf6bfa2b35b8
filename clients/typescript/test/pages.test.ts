/** What outlives a page, and what does not. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { connect, RefusedError, type Store } from "../src/index.js";
import { kinds } from "../src/wire.js";
import { ARENA, joined, Network, soon, turn, URL_A } from "./server.js";
import { hex } from "./vectors.js";

/** A store as a browser's, and what is in it. */
function store(): Store & { readonly kept: Map<string, string> } {
  const kept = new Map<string, string>();
  return {
    kept,
    getItem: (name) => kept.get(name) ?? null,
    setItem: (name, value) => void kept.set(name, String(value)),
    removeItem: (name) => void kept.delete(name),
  };
}

/** The store as the next page finds it: this page is gone without a word. */
function reloaded(before: ReturnType<typeof store>): ReturnType<typeof store> {
  const next = store();
  for (const [name, value] of before.kept) next.kept.set(name, value);
  return next;
}

test("the next page in the tab has the guest, the session and higher numbers of requests", async () => {
  const network = new Network();
  const tab = store();
  const connecting = connect(network.options({ storage: { tab } }));
  const peer = await network.accept();
  const first = await peer.checkIn();
  const client = await soon("the check-in", connecting);
  void client.joinOrCreate("arena").catch(() => {});
  void client.search("arena").catch(() => {});
  assert.equal((await peer.request()).id, 1);
  assert.equal((await peer.request()).id, 2);

  const next = connect(network.options({ storage: { tab: reloaded(tab) } }));
  const other = await network.accept();
  const second = await other.checkIn();
  assert.equal(hex(second.session_key), hex(first.session_key));
  assert.equal(second.credentials.token, first.credentials.token);
  const page = await soon("the check-in", next);
  const joining = page.joinOrCreate("arena");
  const request = await other.request();
  assert.deepEqual([request.id, request.answered], [3, 2]);
  // The answer to what the page before asked for: its seat is for this page to take, not to give up.
  other.reply(1, kinds.joined, joined(0, 1));
  other.reply(3, kinds.joined, joined(5, 8));
  const room = await soon("the seat", joining);
  assert.ok(await other.isSilent());
  assert.equal(room.instance, ARENA);
  room.send("x");
  assert.deepEqual([(await other.up()).number, room.left], [6, null]);
  await client.close();
  await page.close();
});

test("a seat of the page before that goes on elsewhere is this page's to take, and is not given up", async () => {
  const network = new Network();
  const tab = store();
  const connecting = connect(network.options({ storage: { tab } }));
  const peer = await network.accept();
  await peer.checkIn();
  const client = await soon("the check-in", connecting);
  const seated = client.joinOrCreate("arena");
  peer.reply((await peer.request()).id, kinds.joined, joined(0, 1));
  await soon("the seat", seated);

  const next = connect(network.options({ storage: { tab: reloaded(tab) } }));
  const other = await network.accept();
  await other.checkIn();
  const page = await soon("the check-in", next);
  // Its instance is in another life by now, which this page is told before it could say that it wants the seat.
  const life = { incarnation: "000000000001b", channel: 9 };
  other.say(kinds.rejoined, joined(0, 1, life));
  assert.ok(await other.isSilent(), "the seat is not given up");
  const joining = page.joinOrCreate("arena");
  const { id, kind } = await other.request();
  assert.equal(kind, kinds.joinOrCreate);
  other.say(kinds.rejoined, joined(0, 1, life)); // Nor while the join is under way.
  other.reply(id, kinds.joined, joined(0, 1, life));
  const room = await soon("the seat", joining);
  room.send("x");
  const up = await other.up();
  assert.deepEqual([up.channel, up.number, room.left], [9, 1, null]);
  await client.close();
  await page.close();
});

test("a live search of the page before is ended by the next one", async () => {
  const network = new Network();
  const tab = store();
  tab.kept.set("greenroom:session", "00".repeat(16));
  tab.kept.set("greenroom:request", "7");
  const connecting = connect(network.options({ storage: { tab } }));
  const peer = await network.accept();
  await peer.checkIn();
  const client = await soon("the check-in", connecting);
  const listed = { instance: "a", seats_taken: 1, seats_max: 2, created_ms: 1, meta: {} };
  peer.reply(4, kinds.changes, { n: 1, anew: true, more: false, instances: [listed], gone: [], ended: null });
  const unwatch = await peer.request();
  assert.deepEqual([unwatch.kind, unwatch.id, unwatch.fields], [kinds.unwatch, 8, { watch: 4 }]);
  await client.close();
});

test("a session that is over is not gone on with: the page begins one of its own", async () => {
  for (const code of ["session_expired", "superseded"]) {
    const network = new Network();
    const tab = store();
    tab.kept.set("greenroom:session", "00".repeat(16));
    tab.kept.set("greenroom:request", "7");
    const connecting = connect(network.options({ storage: { tab } }));
    const peer = await network.accept();
    await peer.until(kinds.checkIn);
    peer.hello();
    peer.closing(code);
    const other = await network.accept();
    const checkIn = await other.checkIn();
    assert.notEqual(hex(checkIn.session_key), "00".repeat(16));
    const client = await soon("the check-in", connecting);
    void client.create("echo").catch(() => {});
    assert.equal((await other.request()).id, 1);
    await client.close();
  }
  // But what is refused for who checks in stays refused.
  const network = new Network();
  const tab = store();
  tab.kept.set("greenroom:session", "00".repeat(16));
  tab.kept.set("greenroom:request", "7");
  const connecting = connect(network.options({ storage: { tab } }));
  const peer = await network.accept();
  await peer.until(kinds.checkIn);
  peer.hello();
  peer.closing("credentials_invalid");
  await soon("the refusal", assert.rejects(connecting, RefusedError));
  assert.equal(network.dialled.length, 1);
});

test("a page that has closed its client begins a new session as the same guest", async () => {
  const network = new Network();
  const tab = store();
  const keys = [];
  const tokens = new Set<string>();
  for (let count = 0; count < 2; count++) {
    const connecting = connect(network.options({ storage: { tab } }));
    const checkIn = await (await network.accept()).checkIn();
    keys.push(hex(checkIn.session_key));
    tokens.add(checkIn.credentials.token);
    await (await soon("the check-in", connecting)).close();
  }
  assert.notEqual(keys[0], keys[1]);
  assert.equal(tokens.size, 1);
});

test("two clients in one page are two guests, unless they are told what to be called", async () => {
  const network = new Network();
  const tab = store();
  const checkIns = [];
  const clients = [];
  for (const prefix of [undefined, undefined, "second"]) {
    const connecting = connect(network.options({ storage: { tab, ...(prefix && { prefix }) } }));
    checkIns.push(await (await network.accept()).checkIn());
    clients.push(await soon("the check-in", connecting));
  }
  assert.equal(new Set(checkIns.map(({ session_key }) => hex(session_key))).size, 3);
  assert.equal(new Set(checkIns.map(({ credentials }) => credentials.token)).size, 3);
  assert.deepEqual([...new Set([...tab.kept.keys()].map((name) => name.split(":")[0]))].sort(), ["greenroom", "second"]);
  for (const client of clients) await client.close();
});

test("a store that is forbidden, full or full of nonsense stops nobody", async () => {
  const forbidden = (): never => {
    throw new Error("SecurityError");
  };
  const denied = { getItem: forbidden, setItem: forbidden, removeItem: forbidden };
  const nonsense = store();
  nonsense.kept.set("greenroom:session", "<script>");
  nonsense.kept.set("greenroom:request", "-1");
  const shared = store();
  shared.kept.set(`greenroom:servers:${URL_A}`, "javascript:alert(1)\n\u0000\nws://\nhttp://a");
  for (const storage of [{ tab: denied, shared: denied }, { tab: nonsense, shared }, { tab: null, shared: null }]) {
    const network = new Network();
    const connecting = connect(network.options({ storage }));
    const checkIn = await (await network.accept()).checkIn();
    assert.equal(checkIn.session_key.length, 16);
    await (await soon("the check-in", connecting)).close();
    assert.deepEqual(network.dialled, [URL_A]);
  }
});

test("who asked for encryption is not talked out of it by a list", async () => {
  const network = new Network();
  const servers = ["wss://a.example"];
  const connecting = connect(network.options({ servers }));
  const peer = await network.accept();
  await peer.checkIn(undefined, ["ws://b.example:1", "tcp://b.example:2"]);
  const client = await soon("the check-in", connecting);
  peer.say(kinds.goAway, { message: "", session_servers: [{ name: "b", urls: ["ws://b.example:1"] }] });
  await turn();
  assert.equal(client.status, "live", "there is nowhere to go");
  peer.drop();
  assert.equal((await network.accept()).address, "wss://a.example/");
  await client.close();
});
