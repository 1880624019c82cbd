// What a program does to a heavy runtime: hot loops for its compiler, regular expressions, JSON, cryptography, threads,
// WebAssembly. Prints one line of JSON, which must be the same on every machine but for `arch`.
"use strict";
const crypto = require("crypto");
const zlib = require("zlib");
const { Worker } = require("worker_threads");

function primes(limit) {
  const composite = new Uint8Array(limit + 1);
  let count = 0;
  for (let i = 2; i <= limit; i++) {
    if (composite[i]) continue;
    count++;
    for (let j = 2 * i; j <= limit; j += i) composite[j] = 1;
  }
  return count;
}

function series(terms) {
  let sum = 0;
  for (let i = 1; i < terms; i++) sum += Math.sin(i) / Math.sqrt(i);
  return sum;
}

let count = 0;
for (let i = 0; i < 20; i++) count = primes(20000);

const text = "The year 1984, then 2001; between them 17 more.".repeat(50);
const years = text.match(/\b(?<year>\d{4})\b/g).length;
const swapped = text.replace(/(\w+) (\d+)/g, (_, word, number) => `${number}-${word}`);

const data = {
  list: [...Array(2000).keys()].map((i) => ({ i, s: "ü" + i, f: i / 7 })),
  nested: { a: [null, true, 1e300] },
};
const json = JSON.stringify(data);

const [key, nonce] = [Buffer.alloc(32, 7), Buffer.alloc(12, 9)];
const cipher = crypto.createCipheriv("aes-256-gcm", key, nonce);
const sealed = Buffer.concat([cipher.update("attack at dawn"), cipher.final()]);
const decipher = crypto.createDecipheriv("aes-256-gcm", key, nonce);
decipher.setAuthTag(cipher.getAuthTag());
const opened = Buffer.concat([decipher.update(sealed), decipher.final()]).toString();

// (module (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add))
const module_ = Uint8Array.from([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 7, 1, 96, 2, 127, 127, 1, 127, 3, 2, 1, 0, 7, 7, 1, 3, 97, 100, 100, 0, 0, 10, 9, 1,
  7, 0, 32, 0, 32, 1, 106, 11,
]);

WebAssembly.instantiate(module_).then(({ instance }) => {
  const source = 'require("worker_threads").parentPort.postMessage((1n << 200n).toString())';
  new Worker(source, { eval: true }).on("message", (big) => {
    const result = {
      arch: process.arch,
      count,
      series: series(200000).toFixed(9),
      years,
      swapped: crypto.createHash("sha256").update(swapped).digest("hex"),
      json: crypto.createHash("sha512").update(json).digest("hex"),
      again: JSON.stringify(JSON.parse(json)) === json,
      sealed: sealed.toString("hex"),
      tag: cipher.getAuthTag().toString("hex"),
      opened,
      packed: zlib.gunzipSync(zlib.gzipSync(Buffer.from(text))).toString() === text,
      wasm: instance.exports.add(40, 2),
      big,
    };
    console.log(JSON.stringify(result));
  });
});
