// Pictures of dashboards: each panel's query is asked of a real Prometheus and drawn with Grafana's own component
// library (page.jsx), in headless Chromium. There is no Grafana server in this.
//
//   shoot.cjs --prometheus URL [--now SECONDS] [--scrape 15] NAME.json:dark:OUT.png[:FROM-TO] …
//
// FROM-TO: only these of its headed parts, 0-1 is the first. The time is the dashboard's own range, up to now.
// The packages are found by NODE_PATH. Nothing but Prometheus is asked; the page sees no other network.

const esbuild = require('esbuild');
const fs = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { chromium } = require('playwright-core');
const sharp = require('sharp');

const WIDTH_PX = 1280;
const HEIGHT_PX = 3200; // tables draw only what is in sight
const PICTURE_PX = 1600;
const SETTLE_MS = 1500; // plots are drawn in animation frames of their own
const LARGEST_BYTES = 250_000;
const ORIGIN = 'http://screens.invalid';
const UI = path.dirname(require.resolve('@grafana/ui/package.json'));
const KINDS = { '.svg': 'image/svg+xml', '.css': 'text/css', '.js': 'text/javascript' };
const HTML = `<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="/page.css">
<div id="root"></div><script src="/page.js"></script>`;

async function main() {
    const { values, positionals } = parseArgs({
        allowPositionals: true,
        options: {
            prometheus: { type: 'string' },
            now: { type: 'string', default: String(Date.now() / 1000) },
            scrape: { type: 'string', default: '15' },
            chromium: { type: 'string', default: '/usr/bin/chromium' },
        },
    });
    const page = await bundle();
    const browser = await chromium.launch({
        executablePath: values.chromium,
        args: [
            '--no-sandbox',
            '--disable-gpu',
            '--disable-quic',
            '--no-first-run',
            '--disable-background-networking',
            '--disable-component-update',
            '--disable-sync',
            '--no-proxy-server',
        ],
    });
    try {
        for (const wanted of positionals) {
            const [file, mode, out, span = '0-99'] = wanted.split(':');
            const dashboard = JSON.parse(fs.readFileSync(file, 'utf8'));
            const what = { dashboard, mode, width: WIDTH_PX, parts: span.split('-').map(Number) };
            const times = { now: Math.floor(values.now), scrape_s: Number(values.scrape) };
            await shoot(browser, page, values.prometheus, { ...what, ...times }, out);
        }
    } finally {
        await browser.close();
    }
}

async function bundle() {
    const { outputFiles } = await esbuild.build({
        entryPoints: [path.join(__dirname, 'page.jsx')],
        bundle: true,
        write: false,
        outfile: '/page.js',
        minify: true,
        jsx: 'automatic',
        format: 'iife',
        logLevel: 'error',
        define: { 'process.env.NODE_ENV': '"production"' },
        nodePaths: process.env.NODE_PATH.split(path.delimiter),
        loader: { '.ttf': 'empty', '.woff': 'dataurl', '.woff2': 'dataurl', '.svg': 'dataurl', '.png': 'dataurl' },
    });
    return Object.fromEntries(outputFiles.map((each) => [`/${path.basename(each.path)}`, Buffer.from(each.contents)]));
}

async function shoot(browser, files, prometheus, what, out) {
    const scale = PICTURE_PX / WIDTH_PX;
    const page = await browser.newPage({ viewport: { width: WIDTH_PX, height: HEIGHT_PX }, deviceScaleFactor: scale });
    const complaints = [];
    page.on('pageerror', (error) => complaints.push(error));
    await page.route('**', async (route) => {
        const { pathname, search } = new URL(route.request().url());
        const icon = pathname.match(/\/img\/icons\/.*/);
        if (pathname === '/') await route.fulfill({ contentType: 'text/html', body: HTML });
        else if (files[pathname])
            await route.fulfill({ contentType: KINDS[path.extname(pathname)], body: files[pathname] });
        else if (pathname.startsWith('/api/'))
            await route.fulfill({ response: await route.fetch({ url: prometheus + pathname + search }) });
        else if (icon) await route.fulfill({ contentType: KINDS['.svg'], path: path.join(UI, 'dist/public', icon[0]) });
        else await route.abort();
    });
    let empty, taken;
    try {
        await page.goto(ORIGIN);
        empty = await page.evaluate((what) => window.draw(what), what);
        await page.waitForTimeout(SETTLE_MS);
        if (complaints.length) throw complaints[0];
        taken = await page.locator('#root').screenshot({ animations: 'disabled' });
    } finally {
        await page.unrouteAll({ behavior: 'ignoreErrors' });
        await page.close();
    }
    const picture = await sharp(taken).png({ palette: true, quality: 90, effort: 10, compressionLevel: 9 }).toBuffer();
    fs.mkdirSync(path.dirname(out), { recursive: true });
    fs.writeFileSync(out, picture);
    console.log(`${out}: ${picture.length} bytes${empty.length ? `; without data: ${empty.join(', ')}` : ''}`);
    if (picture.length > LARGEST_BYTES) console.warn(`${out}: larger than ${LARGEST_BYTES} bytes`);
}

main().catch((error) => {
    console.error(error);
    process.exitCode = 1;
});
