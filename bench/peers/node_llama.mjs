// llama.cpp beside us, by node-llama-cpp's prebuilt library: run by node, asked by lines on stdin.
// usage: node node_llama.mjs FOLDER MODEL.gguf THREADS   (FOLDER holds node_modules/node-llama-cpp)
// Each line {"prompt": [ids], "new_tokens": n} is answered by {"prefill_s", "decode_s", "tokens"}.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [, , folder, modelPath, threads] = process.argv;
const require = createRequire(pathToFileURL(`${folder}/`));
const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);

const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
const started = performance.now();
const model = await llama.loadModel({ modelPath, useMmap: true });
const load_s = (performance.now() - started) / 1e3;
const context = await model.createContext({
  contextSize: 4096,
  batchSize: 512,
  threads: Number(threads),
  flashAttention: true,
});
const sequence = context.getSequence();
console.log(JSON.stringify({ load_s }));

for await (const line of createInterface({ input: process.stdin })) {
  const { prompt, new_tokens } = JSON.parse(line);
  await sequence.clearHistory();
  const prefill = performance.now();
  await sequence.evaluateWithoutGeneratingNewTokens(prompt.slice(0, -1));
  const tokens = [];
  const prefill_s = (performance.now() - prefill) / 1e3;
  let decode = 0;
  const last = prompt.slice(-1);
  for await (const token of sequence.evaluate(last, { temperature: 0, yieldEogToken: true })) {
    if (tokens.push(token) === 1) decode = performance.now();
    if (tokens.length > new_tokens) break;
  }
  const decode_s = (performance.now() - decode) / 1e3;
  console.log(JSON.stringify({ prefill_s, decode_s, tokens }));
}
process.exit(0);
