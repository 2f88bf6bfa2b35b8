/** What the documents show is code that compiles. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { root } from "./vectors.js";

const folder = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const require = createRequire(import.meta.url);

test("every block of TypeScript and JavaScript in the documents compiles against the SDK", () => {
  const shown = join(folder, "build", "docs");
  rmSync(shown, { recursive: true, force: true });
  mkdirSync(shown, { recursive: true });
  let blocks = 0;
  for (const path of ["clients/typescript/README.md", "docs/typescript.md"]) {
    const text = readFileSync(join(root, path), "utf8");
    for (const [, language, block] of text.matchAll(/^```(ts|js)\n([^]*?)^```$/gm)) {
      writeFileSync(join(shown, `block${blocks++}.${language}`), `${block}\nexport {};\n`);
    }
  }
  assert.ok(blocks >= 4, "the documents lost their code");
  const settings = {
    extends: "../../tsconfig.json",
    compilerOptions: {
      paths: { greenroom: ["../../src/index.ts"], "/greenroom.js": ["../../src/index.ts"] },
      rootDir: "../..",
      noEmit: true,
      // What a page writes without types is looked at for what is there, not for its types.
      allowJs: true,
      noUnusedLocals: false,
    },
    include: ["*.ts", "*.js"],
    exclude: [],
  };
  writeFileSync(join(shown, "tsconfig.json"), JSON.stringify(settings));
  writeFileSync(join(shown, "package.json"), JSON.stringify({ type: "module" }));
  const tsc = join(dirname(require.resolve("typescript/package.json")), "bin", "tsc");
  const run = spawnSync(process.execPath, [tsc, "--project", shown], { encoding: "utf8" });
  assert.equal(run.status, 0, run.stdout);
});
