/**
 * node scripts/web/bundle.mjs OUT: the portal's files as a wheel carries them. Modules and styles become one file each (and what is
 * loaded later, one more), minified, named by their content, with .gz and .br beside them; OUT/manifest.json names them for
 * procguard/portal/http/web_files.py. Needs scripts/setup_web.sh first. Changes nothing in web/.
 */

import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, dirname, extname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';

const WEB = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..', 'web');
const CHARTS = 'vendor/uplot/uPlot.esm.js'; // loaded with the first chart

function fail(message) {
  console.error(`bundle: ${message}`);
  process.exit(1);
}

if (process.argv.length !== 3) fail('usage: node scripts/web/bundle.mjs OUT');
const out = resolve(process.argv[2]);
const esbuild = await import('esbuild').catch(() => fail('esbuild is not installed; run scripts/setup_web.sh first'));
const page = readFileSync(join(WEB, 'index.html'), 'utf8');
const sheets = [...page.matchAll(/<link rel="stylesheet" href="\/static\/([^"]+)">/g)].map((found) => found[1]);
if (!sheets.length) fail('web/index.html names no style sheet');

const common = { bundle: true, minify: true, write: false, outdir: out, absWorkingDir: WEB, logLevel: 'warning', target: ['es2022', 'chrome111', 'firefox113', 'safari16.4'], legalComments: 'none' };
const named = { ...common, format: 'esm', entryNames: '[name]-[hash]' };
const charts = await esbuild.build({ ...named, entryPoints: [CHARTS] });
const chartsName = basename(charts.outputFiles[0].path);
// What modules import dynamically is bundled into the same file, except for the charts: pages are small.
const apart = {
  name: 'charts apart',
  setup: (build) => build.onResolve({ filter: /\/uPlot\.esm\.js$/ }, ({ kind }) => (kind === 'dynamic-import' ? { path: `./${chartsName}`, external: true } : null)),
};
const modules = await esbuild.build({ ...named, entryPoints: ['js/main.js'], plugins: [apart] });
const early = await esbuild.build({ ...common, entryPoints: ['js/early.js'], entryNames: '[name]-[hash]' });
const style = await esbuild.build({ ...common, stdin: { contents: sheets.map((one) => `@import "./${one}";`).join('\n'), resolveDir: WEB, loader: 'css' }, entryNames: 'style-[hash]' });

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
const files = [];

function put(name, content) {
  files.push(name);
  writeFileSync(join(out, name), content);
  writeFileSync(join(out, `${name}.gz`), gzipSync(content, { level: 9 }));
  writeFileSync(join(out, `${name}.br`), brotliCompressSync(content, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } }));
}

for (const one of [...modules.outputFiles, ...charts.outputFiles, ...early.outputFiles, ...style.outputFiles]) put(basename(one.path), one.contents);
const icon = readFileSync(join(WEB, 'icon.svg'));
const iconName = `icon-${createHash('sha256').update(icon).digest('hex').slice(0, 8)}${extname('icon.svg')}`;
put(iconName, icon);

const first = (built) => basename(built.outputFiles[0].path);
const manifest = { main: first(modules), early: first(early), style: first(style), icon: iconName, files: files.sort() };
writeFileSync(join(out, 'manifest.json'), `${JSON.stringify(manifest, null, 1)}\n`);
