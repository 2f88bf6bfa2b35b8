/** Stories on the real binary, over real sockets. */

import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";
import {
  all,
  type Client,
  connect,
  field,
  GreenroomError,
  NoServerError,
  type Options,
  RefusedError,
  type Room,
  type Store,
} from "../src/index.js";
import { CERTIFICATE, KEY } from "./certificate.js";
import { Cluster, PATIENCE } from "./cluster.js";
import { Queue } from "./server.js";

interface Player {
  x: number;
  y: number;
  hp: number;
  score: number;
  name: string;
}
interface State {
  size: number;
  players: Record<string, Player>;
}
type In = { Run: [number, number] } | { Shoot: [number, number] };
type Out = { Shot: { by: number; toward: [number, number]; hit: number | null } } | { Down: { seat: number; by: number } };
type Reply = { Shot: number | null } | { Scores: [string, number][] };
type Arena = Room<State, Out, In, Reply, { shots: number; reload: number; running: [number, number] }, null>;

let cluster: Cluster;

before(async () => {
  cluster = await Cluster.start(2, 1);
});
after(() => cluster?.end());

/** Those of the test that runs. One that is left over, of a test that failed, would keep the process alive. */
const open: Client[] = [];
afterEach(() => Promise.all(open.splice(0).map((client) => client.close())));

async function player(options: Options): Promise<Client> {
  const client = await connect(options);
  open.push(client);
  return client;
}

function guest(name: string, servers: string[] = cluster.urls, tab?: Store): Promise<Client> {
  return player({ servers, auth: { scheme: "guest", name }, ...(tab && { storage: { tab } }) });
}

/** Waits until something holds that the client can only look at. */
async function until(what: string, holds: () => boolean): Promise<void> {
  const began = performance.now();
  while (!holds()) {
    assert.ok(performance.now() - began < PATIENCE, `waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Takes from a queue until it fits. */
async function first<T>(queue: Queue<T>, fits: (item: T) => boolean): Promise<T> {
  for (;;) {
    const item = await queue.next("what should come");
    if (fits(item)) return item;
  }
}

test("two players on different session servers see each other come, run, shoot and go", async () => {
  const [ann, bo] = await Promise.all([guest("Ann", [cluster.urls[0]!]), guest("Bo", [cluster.urls[1]!])]);
  const annRoom: Arena = await ann.joinOrCreate("arena", { key: "two players" });
  const boRoom: Arena = await bo.join(annRoom.instance);
  assert.notEqual(annRoom.seat, boRoom.seat);
  const events = new Queue<string>();
  boRoom.onAdd("players", (player, key) => events.push(`add ${key} ${player.name}`));
  boRoom.onChange("players", (player, key, before) => {
    if (player.x > before.x) events.push(`run ${key}`);
  });
  boRoom.onRemove("players", (player, key) => events.push(`remove ${key} ${player.name}`));
  const told = new Queue<Out>();
  boRoom.onMessage((message) => told.push(message));
  await first(events, (event) => event === `add ${annRoom.seat} Ann`);
  await until("Ann's own view", () => annRoom.privateState?.shots === 5);
  annRoom.send({ Run: [annRoom.state!.players[annRoom.seat]!.x > 50 ? -1 : 1, 0] });
  const x = boRoom.state!.players[annRoom.seat]!.x;
  await until("Ann running", () => boRoom.state!.players[annRoom.seat]!.x !== x);
  const shot = await annRoom.call({ Shoot: [0, 0.001] });
  assert.ok("Shot" in shot);
  const seen = await told.next("the shot");
  assert.ok("Shot" in seen);
  assert.deepEqual([seen.Shot.by, seen.Shot.hit], [annRoom.seat, shot.Shot]);
  const scores = await boRoom.query(null);
  assert.ok("Scores" in scores && scores.Scores.some(([name]) => name === "Ann"));
  await annRoom.leave();
  await first(events, (event) => event === `remove ${annRoom.seat} Ann`);
  assert.equal(annRoom.left?.code, "left");
  await Promise.all([ann.close(), bo.close()]);
});

test("a live search and a search find what there is, as it changes", async () => {
  const client = await guest("Ann");
  const filter = all(field("key").eq("searched"), field("players").ge(0));
  const told = new Queue<string>();
  const watch = await client.watch("arena", filter, (event) => told.push(event.type));
  assert.equal(await told.next("the end of an empty set"), "ready");
  const id = await client.create("arena", { key: "searched", params: { size: 50, mode: "ranked" } });
  assert.equal(await told.next("the new instance"), "add");
  assert.equal(watch.current.get(id)?.meta["mode"], "ranked");
  const found = await client.search("arena", filter, { order: { field: "created", descending: true }, limit: 1 });
  assert.deepEqual(found.instances.map(({ instance }) => instance), [id]);
  const room = await client.join(id);
  await first(told, (type) => type === "change");
  assert.equal(watch.current.get(id)?.seatsTaken, 1);
  await room.leave();
  await client.destroy(id);
  await first(told, (type) => type === "remove");
  watch.stop();
  await client.close();
});

test("what is refused is an error of its own, and the client goes on", async () => {
  const client = await guest("Ann");
  const refused = async (promise: Promise<unknown>, code: string): Promise<void> => {
    await assert.rejects(promise, (error: unknown) => {
      assert.ok(error instanceof RefusedError, String(error));
      assert.equal(error.code, code);
      assert.ok(error.message.length > 10);
      return true;
    });
  };
  await refused(client.joinOrCreate("no such kind"), "kind_unknown");
  await refused(client.joinOrCreate("tab\tin it"), "name_invalid");
  await refused(client.join("014d2pf2dbsqqzxq5tk1v58cgg"), "instance_unknown");
  await refused(client.join("not an id"), "malformed");
  await refused(client.search("arena", field("nonsense").eq(1)), "field_unknown");
  await refused(client.search("arena", field("mode").eq(1)), "field_mismatch");
  await refused(client.search("arena", all(), { limit: 0 }), "limit_invalid");
  await refused(client.rank("no such board"), "rank_unknown");
  await refused(client.create("arena", { params: { size: 5 } }), "rejected");
  const room = await client.joinOrCreate("arena", { key: "refusals" });
  const refusal = new Promise((resolve) => room.onRefused((number, { code }) => resolve([number, code])));
  const number = room.send({ Fly: 1 } as never);
  assert.deepEqual(await refusal, [number, "message_unknown"]);
  assert.equal(client.status, "live");
  await client.close();

  await refused(connect({ servers: cluster.urls, auth: { scheme: "password", token: "secret" } }), "scheme_unknown");
  await refused(connect({ servers: cluster.urls, auth: { scheme: "guest", token: "short" } }), "credentials_invalid");
  const nobody = connect({ servers: ["ws://127.0.0.1:1"], auth: { scheme: "guest" }, connectMs: 300 });
  await assert.rejects(nobody, (error: unknown) => error instanceof NoServerError && /ECONNREFUSED/.test(error.message));
});

test("a name is text, whatever is in it", async () => {
  const name = `<img src=x onerror=alert(1)>"'&`;
  const client = await guest(`${name}\u0000\u001b\u202e`);
  // What is not to be seen is taken away by the server; what looks like HTML is a text as any other.
  assert.equal(client.name, name);
  const room: Arena = await client.joinOrCreate("arena", { key: "names" });
  await until("the player", () => room.state?.players[room.seat] !== undefined);
  assert.equal(room.state!.players[room.seat]!.name, client.name);
  await client.close();
});

test("a page that is loaded again in the same tab is the same guest in the same session and the same seat", async () => {
  const kept = new Map<string, string>();
  const tab: Store = {
    getItem: (name) => kept.get(name) ?? null,
    setItem: (name, value) => void kept.set(name, value),
    removeItem: (name) => void kept.delete(name),
  };
  const before = await guest("Ann", [cluster.urls[0]!], tab);
  const room: Arena = await before.joinOrCreate("arena", { key: "reloaded" });
  const watch = await before.watch("arena", all(), () => {});
  assert.ok(watch.current.size >= 0);
  room.send({ Run: [1, 0] });
  await until("the run is acknowledged", () => room.unacknowledged === 0);
  // The page is gone without a word: what it kept is there for the next one.
  const page = new Map(kept);
  const next: Store = {
    getItem: (name) => page.get(name) ?? null,
    setItem: (name, value) => void page.set(name, value),
    removeItem: (name) => void page.delete(name),
  };
  const ended = new Promise<string>((resolve) => before.on("ended", ({ code }) => resolve(code)));
  const after = await guest("Ann", [cluster.urls[1]!], next);
  assert.deepEqual([after.user, after.session], [before.user, before.session]);
  const again: Arena = await after.joinOrCreate("arena", { key: "reloaded" });
  assert.deepEqual([again.instance, again.seat], [room.instance, room.seat]);
  const reply = await again.call({ Shoot: [0, 1] });
  assert.ok("Shot" in reply);
  assert.equal(await ended, "superseded", "the page before, if it is still there, is told");
  await after.close();
});

/** Calls one after the other until told to stop; how many the game took. */
async function shoot(room: Arena, isOver: () => boolean): Promise<number> {
  let taken = 0;
  while (!isOver()) {
    try {
      const reply = await room.call({ Shoot: [1, 0] });
      assert.ok("Shot" in reply);
      taken += 1;
    } catch (error) {
      assert.ok(error instanceof GreenroomError && error.code === "rejected", String(error)); // Nothing to shoot with.
    }
  }
  return taken;
}

test("a session server is killed while two clients play: nothing is lost and nothing comes twice", async () => {
  // One that nobody else plays on, so that it can be killed.
  await cluster.startSession();
  const doomed = cluster.sessions.pop()!;
  const requestMs = 30_000;
  const doomedGuest = (name: string): Promise<Client> =>
    player({ servers: [doomed.url], auth: { scheme: "guest", name }, requestMs });
  const clients = await Promise.all([doomedGuest("Ann"), doomedGuest("Bo")]);
  const key = "killed";
  const rooms: Arena[] = [];
  for (const client of clients) rooms.push(await client.joinOrCreate("arena", { key }));
  const shots = rooms.map(() => new Map<number, number>());
  const statuses = clients.map(() => new Array<string>());
  let rewound = 0;
  rooms.forEach((room, index) => {
    room.onMessage((message) => {
      if ("Shot" in message) shots[index]!.set(message.Shot.by, (shots[index]!.get(message.Shot.by) ?? 0) + 1);
    });
    room.onMissed((count) => (rewound += count));
    room.onRewound(() => (rewound += 1));
    clients[index]!.on("status", (status) => statuses[index]!.push(status));
  });
  let isOver = false;
  const shooting = rooms.map((room) => shoot(room, () => isOver));
  const total = (): number => shots.reduce((sum, each) => sum + [...each.values()].reduce((a, b) => a + b, 0), 0);
  await until("some shots", () => total() > 20);
  await doomed.server.kill();
  await until("both to be back", () => statuses.every((each) => each.includes("resumed")));
  const then = total();
  await until("more shots", () => total() > then + 20);
  isOver = true;
  const taken = await Promise.all(shooting);
  // Each has its own shots and those of the other: as many as the game took, told once to both.
  const seats = rooms.map(({ seat }) => seat);
  const expected = new Map(seats.map((seat, index) => [seat, taken[index]!]));
  const isWhole = (): boolean => shots.every((each) => seats.every((seat) => (each.get(seat) ?? 0) >= expected.get(seat)!));
  await until("the last messages", isWhole);
  for (const each of shots) assert.deepEqual(new Map([...each].sort()), new Map([...expected].sort()));
  assert.equal(rewound, 0);
  for (const [index, client] of clients.entries()) {
    assert.deepEqual(statuses[index], ["resuming", "resumed"]);
    assert.notEqual(client.server, `${doomed.url}/`);
    assert.deepEqual([client.stats.reconnects, client.stats.missed, client.stats.misbehaved], [1, 0, 0]);
  }
  // And on the kind that gives back what it gets: every number once and in order.
  const echo = await clients[0]!.joinOrCreate("echo");
  const numbers = await Promise.all(Array.from({ length: 60 }, (_, number) => echo.call({ number })));
  assert.deepEqual(numbers, Array.from({ length: 60 }, (_, number) => ({ number })));
  await Promise.all(clients.map((client) => client.close()));
});

test("a client on Node plays over TLS with a server of the cluster's own certificate", async () => {
  await cluster.startSession({ certificate: CERTIFICATE, key: KEY });
  const { url } = cluster.sessions.pop()!;
  assert.match(url, /^wss:/);
  const client = await player({ servers: [url], auth: { scheme: "guest", name: "Ann" }, trust: CERTIFICATE });
  const room: Arena = await client.joinOrCreate("arena", { key: "secure" });
  assert.ok("Scores" in (await room.query(null)));
});

test("a session server that drains is left without a call that fails", async () => {
  await cluster.startSession();
  const leaving = cluster.sessions.pop()!;
  const client = await guest("Ann", [leaving.url]);
  const room: Arena = await client.joinOrCreate("arena", { key: "drained" });
  const resumed = new Promise<void>((resolve) => client.on("status", (status) => status === "resumed" && resolve()));
  let isOver = false;
  const shooting = shoot(room, () => isOver);
  leaving.server.terminate();
  await resumed;
  isOver = true;
  await shooting;
  assert.ok("Scores" in (await room.query(null)));
  await client.close();
});
