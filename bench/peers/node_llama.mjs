// llama.cpp beside us, by node-llama-cpp's prebuilt library: run by node, asked by lines on stdin.
// usage: node node_llama.mjs FOLDER MODEL.gguf THREADS   (FOLDER holds node_modules/node-llama-cpp)
// The first line out is {"peer", "load_s"}. Each line {"prompt": [ids], "new_tokens": n} is
// answered by {"prefill_s", "decode_s", "tokens"}: the time to the first new token, and that of the
// n behind it.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [, , folder, modelPath, threads] = process.argv;
const require = createRequire(pathToFileURL(`${folder}/`));
const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);

const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
const started = performance.now();
const model = await llama.loadModel({ modelPath, useMmap: true });
const context = await model.createContext({
  contextSize: 4096,
  batchSize: 512,
  threads: Number(threads),
  flashAttention: true,
});
const sequence = context.getSequence();
const load_s = (performance.now() - started) / 1e3;
console.log(JSON.stringify({ peer: "node-llama-cpp", load_s }));

for await (const line of createInterface({ input: process.stdin })) {
  const { prompt, new_tokens } = JSON.parse(line);
  await sequence.clearHistory();
  const began = performance.now();
  let first = began;
  const tokens = [];
  for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    if (tokens.push(token) === 1) first = performance.now();
    if (tokens.length > new_tokens) break;
  }
  const prefill_s = (first - began) / 1e3;
  const decode_s = (performance.now() - first) / 1e3;
  console.log(JSON.stringify({ prefill_s, decode_s, tokens }));
}
process.exit(0);
