// npm's fossil-delta on pairs of states, for compatibility.rs.
// Usage: node compatibility.mjs NODE_MODULES FOLDER COUNT
// For each N below COUNT, reads N.base, N.target and N.ours; writes N.npm (its delta) and
// N.npm-applied (what it makes of ours).
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, folder, count] = process.argv.slice(2);
const entry = join(modules, "fossil-delta", "fossil-delta.js");
const { applyDelta, createDelta } = await import(pathToFileURL(entry));
for (let pair = 0; pair < Number(count); pair++) {
  const file = (kind) => join(folder, `${pair}.${kind}`);
  const [base, target, ours] = ["base", "target", "ours"].map((kind) => readFileSync(file(kind)));
  writeFileSync(file("npm"), createDelta(base, target));
  writeFileSync(file("npm-applied"), applyDelta(base, ours));
}
