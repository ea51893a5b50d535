/**
 * The files of a tokenizer's folder, read and written.
 *
 * @module
 */
import { mkdir, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { checkTokenizerJson, type TokenizerJson } from "./backend.ts";
import { show } from "./options.ts";
import type { AddedToken, TokenizerInit } from "./types.ts";

const EXTRA_TEMPLATES = "additional_chat_templates";

/** What a folder holds. */
export interface TokenizerFiles {
  /** tokenizer.json as it was written, to be saved unchanged. */
  jsonText: string;
  json: TokenizerJson;
  /** tokenizer_config.json and the files that complete it. */
  init: TokenizerInit & Record<string, unknown>;
  /** Tokens of tokenizer_config.json that tokenizer.json may lack, by id. */
  addedTokens: AddedToken[];
}

type Json = Record<string, unknown>;

async function readText(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if ((error as { code?: string }).code === "ENOENT") return undefined;
    throw error;
  }
}

function parseObject(text: string, path: string): Json {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new SyntaxError(`Cannot read ${path} as JSON: ${(error as Error).message}`, {
      cause: error,
    });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new TypeError(`Expected ${path} to hold a JSON object but found ${show(value)}.`);
  }
  return value as Json;
}

async function readObject(path: string): Promise<Json | undefined> {
  const text = await readText(path);
  return text === undefined ? undefined : parseObject(text, path);
}

/** Templates in files: the main one as `default`, the others by the name of their file. */
async function readTemplates(folder: string): Promise<Record<string, string>> {
  const templates: Record<string, string> = {};
  const main = await readText(join(folder, "chat_template.jinja"));
  if (main !== undefined) templates.default = main;
  let names: string[] = [];
  try {
    names = await readdir(join(folder, EXTRA_TEMPLATES));
  } catch (error) {
    if ((error as { code?: string }).code !== "ENOENT") throw error;
  }
  for (const name of names.sort()) {
    if (!name.endsWith(".jinja")) continue;
    const text = await readText(join(folder, EXTRA_TEMPLATES, name));
    if (text !== undefined) templates[basename(name, ".jinja")] = text;
  }
  return templates;
}

/** A chat template in any of the forms that configs have had. */
function chatTemplate(value: unknown): string | Record<string, string> | null {
  if (Array.isArray(value)) {
    return Object.fromEntries(value.map(({ name, template }) => [name, template]));
  }
  return (value ?? null) as string | Record<string, string> | null;
}

/** Path of a folder that is given as a path or as a file: URL. */
export function folderPath(folder: string | URL): string {
  if (folder instanceof URL) return fileURLToPath(folder);
  if (typeof folder === "string" && folder !== "") return folder;
  throw new TypeError(`Expected the folder of a tokenizer as a path but found ${show(folder)}.`);
}

/**
 * Reads a tokenizer's folder.
 *
 * @throws {Error} when the folder or its tokenizer.json is missing
 * @throws {SyntaxError} when a file is no JSON
 * @throws {TypeError} when a file lacks what it must have
 */
export async function readFolder(folder: string): Promise<TokenizerFiles> {
  const path = join(folder, "tokenizer.json");
  const jsonText = await readText(path).catch((error: { code?: string }) => {
    if (error.code === "ENOTDIR") return undefined;
    throw error;
  });
  if (jsonText === undefined) {
    const found = await stat(folder).catch(() => undefined);
    throw new Error(
      found?.isDirectory()
        ? `Cannot load a tokenizer from ${folder} because it has no tokenizer.json.`
        : `Cannot load a tokenizer from ${folder} because ${
          found ? "it is no folder" : "it does not exist"
        }.`,
    );
  }
  const json = checkTokenizerJson(parseObject(jsonText, path), path);
  const init = await readObject(join(folder, "tokenizer_config.json")) ?? {};
  const templates = await readTemplates(folder);
  const names = Object.keys(templates);
  if (names.length === 1 && names[0] === "default") init.chat_template = templates.default;
  else if (names.length > 0) init.chat_template = templates;
  else if (init.chat_template == null) {
    init.chat_template = (await readObject(join(folder, "chat_template.json")))?.chat_template;
  }
  init.chat_template = chatTemplate(init.chat_template);

  // tokenizer.json already says which special tokens stand around a text.
  delete init.add_bos_token;
  delete init.add_eos_token;

  const decoder = init.added_tokens_decoder as Record<string, AddedToken> | undefined;
  if (decoder === undefined) {
    Object.assign(init, await readObject(join(folder, "special_tokens_map.json")) ?? {});
  }
  const addedTokens = Object.entries(decoder ?? {})
    .sort(([a], [b]) => Number(a) - Number(b))
    .map(([, token]) => token);
  return { jsonText, json, init: { ...init, name_or_path: folder }, addedTokens };
}

/** What is written into a folder. */
export interface SavedFiles {
  jsonText: string;
  config: Json;
  special_tokens_map: Json;
  chat_template: string | Record<string, string> | null;
}

/**
 * Writes a tokenizer's folder so that both this library and Hugging Face's read it.
 *
 * @returns the paths of the files
 * @throws {TypeError} when the name of a template is no file name
 */
export async function writeFolder(folder: string, files: SavedFiles): Promise<string[]> {
  const paths: string[] = [];
  const write = async (name: string, text: string) => {
    const path = join(folder, name);
    await writeFile(path, text);
    paths.push(path);
  };
  await mkdir(folder, { recursive: true });
  await write("tokenizer_config.json", JSON.stringify(files.config, null, 2) + "\n");
  await write("special_tokens_map.json", JSON.stringify(files.special_tokens_map, null, 2) + "\n");
  await write("tokenizer.json", files.jsonText);
  const templates = typeof files.chat_template === "string"
    ? { default: files.chat_template }
    : files.chat_template ?? {};
  for (const [name, text] of Object.entries(templates)) {
    if (name === "default") {
      await write("chat_template.jinja", text);
      continue;
    }
    if (basename(name) !== name || name.startsWith(".")) {
      throw new TypeError(
        `Expected the name of a chat template to be a file name but found "${name}".`,
      );
    }
    await mkdir(join(folder, EXTRA_TEMPLATES), { recursive: true });
    await write(join(EXTRA_TEMPLATES, `${name}.jinja`), text);
  }
  return paths;
}
