/** What npm and pages get. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { gzipSync } from "node:zlib";
import type * as sdk from "../src/index.js";
import { joined, Network, soon } from "./server.js";
import { kinds } from "../src/wire.js";

const folder = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const committed = join(folder, "dist", "greenroom.min.js");
/** With everything that it needs in it, and compressed. */
const BYTES_MAX = 20 * 1024;

test("the committed bundle is that of the sources", async () => {
  const { bundle } = (await import(pathToFileURL(join(folder, "build.mjs")).href)) as { bundle(): Promise<string> };
  assert.ok((await bundle()) === readFileSync(committed, "utf8"), "run `npm run build` in clients/typescript and commit dist/");
});

test("the bundle has at most 20 KB, minified and compressed", (context) => {
  const bytes = readFileSync(committed);
  const compressed = gzipSync(bytes, { level: 9 }).length;
  context.diagnostic(`the bundle: ${bytes.length} bytes minified, ${compressed} with gzip`);
  assert.ok(compressed <= BYTES_MAX, `${compressed} bytes`);
});

test("the bundle is a module for browsers: it imports nothing, and what it exports plays", async () => {
  assert.doesNotMatch(readFileSync(committed, "utf8"), /\bimport\s*[({"']|\brequire\(|node:/);
  const { connect, RefusedError } = (await import(pathToFileURL(committed).href)) as typeof sdk;
  const network = new Network();
  const connecting = connect(network.options());
  const peer = await network.accept();
  await peer.checkIn();
  const client = await soon("the check-in", connecting);
  const joining = client.joinOrCreate("arena");
  const { id } = await peer.request();
  peer.reply(id, kinds.joined, joined(0, 1));
  const room = await soon("the seat", joining);
  peer.snapshot(1, { players: {} });
  const adding = new Promise((resolve) => room.onAdd("players", (_, key) => resolve(key)));
  peer.snapshot(2, { players: { 3: { x: 1 } } });
  assert.equal(await soon("the player", adding), "3");
  const other = client.joinOrCreate("nokind");
  const { id: refused } = await peer.request();
  peer.refuse(refused, "kind_unknown");
  // The bundler shortens names of classes; what an error is called is not shortened.
  await assert.rejects(other, (error: unknown) => {
    assert.ok(error instanceof RefusedError);
    assert.deepEqual([error.name, error.code], ["RefusedError", "kind_unknown"]);
    return true;
  });
  await client.close();
});

test("what npm packs is the modules, their types and the bundle, and imports as `greenroom`", () => {
  const target = mkdtempSync(join(tmpdir(), "greenroom-pack-"));
  try {
    const options = { cwd: folder, encoding: "utf8", stdio: "pipe" } as const;
    const [packed] = JSON.parse(execFileSync("npm", ["pack", "--json", "--silent", "--offline", "--pack-destination", target], options)) as [
      { filename: string; files: { path: string }[] },
    ];
    const paths = packed.files.map(({ path }) => path);
    for (const path of ["README.md", "dist/index.js", "dist/index.d.ts", "dist/greenroom.min.js"]) {
      assert.ok(paths.includes(path), `${path} is not in ${paths.join(" ")}`);
    }
    assert.ok(!paths.some((path) => path.startsWith("src/") || path.startsWith("test/")), paths.join(" "));
    const modules = join(target, "node_modules", "greenroom");
    execFileSync("mkdir", ["-p", modules]);
    execFileSync("tar", ["xzf", join(target, packed.filename), "-C", modules, "--strip-components=1"]);
    assert.ok(existsSync(join(modules, "dist", "client.d.ts")));
    const script = 'import { connect, field } from "greenroom"; import * as min from "greenroom/min"; console.log(typeof connect, typeof field, typeof min.connect)';
    const run = { cwd: target, encoding: "utf8" } as const;
    assert.equal(execFileSync(process.execPath, ["--input-type=module", "-e", script], run).trim(), "function function function");
  } finally {
    rmSync(target, { recursive: true, force: true });
  }
});
