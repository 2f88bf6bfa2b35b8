import assert from "node:assert/strict";
import { test } from "node:test";
import { Collection, isEqual, type Path } from "../src/collections.js";
import { dice } from "./vectors.js";

/** What is told from one state to the next. */
function told(path: Path, ...states: unknown[]): string[] {
  const events: string[] = [];
  const collection = new Collection(path, {
    add: (item, key) => events.push(`add ${key} ${JSON.stringify(item)}`),
    change: (item, key, before) => events.push(`change ${key} ${JSON.stringify(before)} ${JSON.stringify(item)}`),
    remove: (item, key) => events.push(`remove ${key} ${JSON.stringify(item)}`),
  });
  for (const state of states) for (const call of collection.update(state)) call();
  return events;
}

test("items of a map are known by its keys", () => {
  assert.deepEqual(told("a.b", { a: { b: { x: 1, y: { z: [1] } } } }, { a: { b: { y: { z: [2] }, w: 3 } } }), [
    "add x 1",
    'add y {"z":[1]}',
    "remove x 1",
    'change y {"z":[1]} {"z":[2]}',
    "add w 3",
  ]);
});

test("items of a list are known by their id, else by their seat, else by where they stand", () => {
  assert.deepEqual(told("l", { l: [{ id: "a", n: 1 }, { id: "b", n: 1 }] }, { l: [{ id: "b", n: 1 }] }), [
    'add a {"id":"a","n":1}',
    'add b {"id":"b","n":1}',
    'remove a {"id":"a","n":1}',
  ]);
  assert.deepEqual(told("l", { l: [{ seat: 3 }] }, { l: [{ seat: 4 }, { seat: 3 }] }), ['add 3 {"seat":3}', 'add 4 {"seat":4}']);
  assert.deepEqual(told("l", { l: ["x", "y"] }, { l: ["y"] }), ['add 0 "x"', 'add 1 "y"', 'remove 1 "y"', 'change 0 "x" "y"']);
  // Two that are alike can't be told apart by their id.
  assert.deepEqual(told("l", { l: [{ id: 1 }, { id: 1 }] }).length, 2);
});

test("a path that leads nowhere is an empty collection, also where it leads into what every object has", () => {
  for (const path of ["a.b", "constructor", "__proto__", "a.length", "toString.name", ["a", "b"]]) {
    assert.deepEqual(told(path, undefined, null, 7, "text", {}, { a: "text" }), []);
  }
  assert.deepEqual(told(["a.b"], { "a.b": { c: 1 } }), ["add c 1"]);
  assert.deepEqual(told("p", { p: { x: 1 } }, {}), ["add x 1", "remove x 1"]);
});

test("whatever the states are, who follows what is told has what is there", () => {
  const random = dice(5);
  const below = (bound: number): number => Math.floor(random() * bound);
  for (let round = 0; round < 200; round++) {
    const mirror = new Map<string, unknown>();
    const collection = new Collection("p", {
      add: (item, key) => {
        assert.ok(!mirror.has(key));
        mirror.set(key, item);
      },
      change: (item, key, before) => {
        assert.deepEqual(mirror.get(key), before);
        assert.notDeepEqual(item, before);
        mirror.set(key, item);
      },
      remove: (item, key) => {
        assert.deepEqual(mirror.get(key), item);
        mirror.delete(key);
      },
    });
    for (let step = 0; step < 20; step++) {
      const p = Object.fromEntries(Array.from({ length: below(6) }, () => [`k${below(8)}`, { x: below(3), y: [below(2)] }]));
      for (const call of collection.update({ p })) call();
      assert.deepEqual(Object.fromEntries(mirror), p);
    }
  }
});

test("values are equal all the way down or not at all", () => {
  const same: [unknown, unknown][] = [
    [NaN, NaN],
    [{ a: [1, { b: null }] }, { a: [1, { b: null }] }],
    [Uint8Array.of(1, 2), Uint8Array.of(1, 2)],
    [2n ** 60n, 2n ** 60n],
  ];
  for (const [a, b] of same) assert.ok(isEqual(a, b));
  const other: [unknown, unknown][] = [
    [{ a: 1 }, { a: 1, b: 1 }],
    [{ a: 1, b: 1 }, { a: 1 }],
    [{ a: undefined }, { b: undefined }],
    [[1, 2], { 0: 1, 1: 2 }],
    [{ 0: 1 }, [1]],
    [Uint8Array.of(1), [1]],
    [[1], Uint8Array.of(1)],
    [{}, null],
    [1, "1"],
    [{ toString: 1 }, {}],
    [{}, { toString: 1 }],
  ];
  for (const [a, b] of other) assert.ok(!isEqual(a, b));
});
