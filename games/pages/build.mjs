// Builds the scripts of the pages, each into one module beside its page, with the SDK left to `/greenroom.js`. The tools
// are those of the SDK: `npm ci` in clients/typescript first. With `--check` it writes nothing, and fails where what is
// there is not what would be written.

import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const require = createRequire(join(here, "../../clients/typescript/package.json"));
const { build } = require("esbuild");

const scripts = { "src/start.ts": "start.js", "src/arena.ts": "arena/arena.js", "src/duel.ts": "duel/duel.js" };
const tsc = join(dirname(require.resolve("typescript/package.json")), "bin", "tsc");
let failed = spawnSync(process.execPath, [tsc, "--project", here], { stdio: "inherit" }).status !== 0;

for (const [source, script] of Object.entries(scripts)) {
  const made = await build({
    absWorkingDir: here,
    entryPoints: [source],
    bundle: true,
    format: "esm",
    target: "es2022",
    charset: "utf8",
    alias: { greenroom: "/greenroom.js" },
    external: ["/greenroom.js"],
    banner: { js: `// Built from games/pages/${source} by games/pages/build.mjs.` },
    write: false,
    logLevel: "warning",
  });
  const { text } = made.outputFiles[0];
  const file = join(here, script);
  if (!process.argv.includes("--check")) writeFileSync(file, text);
  else if (readFileSync(file, "utf8") !== text) {
    console.error(`games/pages/${script} is not what games/pages/${source} builds: run \`node games/pages/build.mjs\``);
    failed = true;
  }
}
process.exitCode = failed ? 1 : 0;
