// Builds the package: `dist/` with its modules, their types and the bundle; with `--test`, `build/` with the tests.

import { spawnSync } from "node:child_process";
import { rmSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const require = createRequire(import.meta.url);

/** The bundle as text: everything in one module for browsers. The text depends on nothing but the sources. */
export async function bundle() {
  const { build } = await import("esbuild");
  const made = await build({
    absWorkingDir: here,
    entryPoints: ["src/index.ts"],
    bundle: true,
    minify: true,
    format: "esm",
    platform: "browser",
    target: "es2022",
    charset: "utf8",
    legalComments: "none",
    write: false,
    outfile: "greenroom.min.js",
    logLevel: "warning",
    plugins: [
      {
        // A browser has a WebSocket.
        name: "without-node",
        setup(on) {
          on.onResolve({ filter: /\/socket-node\.js$/ }, () => ({ path: "none", namespace: "none" }));
          on.onLoad({ filter: /.*/, namespace: "none" }, () => ({ contents: "export {}" }));
        },
      },
    ],
  });
  return made.outputFiles[0].text;
}

function compile(settings) {
  const tsc = join(dirname(require.resolve("typescript/package.json")), "bin", "tsc");
  const { status } = spawnSync(process.execPath, [tsc, "--project", settings], { cwd: here, stdio: "inherit" });
  if (status !== 0) process.exit(status ?? 1);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  if (process.argv.includes("--test")) {
    rmSync(join(here, "build"), { recursive: true, force: true });
    compile("tsconfig.json");
  } else {
    const { writeFileSync } = await import("node:fs");
    compile("tsconfig.package.json");
    writeFileSync(join(here, "dist", "greenroom.min.js"), await bundle());
  }
}
