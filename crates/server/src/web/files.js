// Files of a message: texts, which become blocks of code with their name, and pictures.

import { newId } from "./dom.js";
import * as store from "./store.js";

/** The largest text, the largest picture after it was made smaller, and how many of both a message takes. */
export const TEXT_BYTES = 512 * 1024;
const PICTURE_BYTES = 180 * 1024; // as many as a request may have fit into its 4 MB
export const FILES = 10;
/** Of a picture that is read; its longer side is then at most SIDE. */
const READ_BYTES = 40 * 1024 * 1024;
const SIDE = 1024;
const PICTURES = ["image/png", "image/jpeg", "image/webp", "image/gif"];

/** Reads a file: `{id, name, type, size}` with `text`, or with a picture's `data` as an address. Throws what is wrong. */
export async function readFile(file) {
  const about = { id: newId(), name: file.name || "pasted", type: file.type, size: file.size };
  if (PICTURES.includes(file.type)) return { ...about, data: await picture(file) };
  if (file.size > TEXT_BYTES) throw new Error(`“${file.name}” is larger than ${size(TEXT_BYTES)}.`);
  return { ...about, text: await text(file) };
}

async function text(file) {
  try {
    const found = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (!found.includes("\0")) return found;
  } catch {
    /* not UTF-8 */
  }
  throw new Error(`“${file.name}” is neither text nor a picture (PNG, JPEG, WebP, GIF).`);
}

/** Made anew of its pixels: what else the file says, as the place where it was taken, stays here. */
async function picture(file) {
  if (file.size > READ_BYTES) throw new Error(`“${file.name}” is larger than ${size(READ_BYTES)}.`);
  const whole = await address(file);
  const image = await loaded(whole, file.name);
  for (let side = SIDE; side >= 64; side *= 0.7) {
    const scale = Math.min(1, side / Math.max(image.width, image.height));
    const canvas = document.createElement("canvas");
    Object.assign(canvas, {
      width: Math.max(1, Math.round(image.width * scale)),
      height: Math.max(1, Math.round(image.height * scale)),
    });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    const kinds = file.type === "image/jpeg" ? [] : [canvas.toDataURL("image/png")];
    const found = [...kinds, canvas.toDataURL("image/jpeg", 0.9)].find(({ length }) => length < PICTURE_BYTES * 1.34);
    if (found) return found;
  }
  throw new Error(`“${file.name}” is too large.`);
}

function address(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`“${file.name}” cannot be read.`));
    reader.readAsDataURL(file);
  });
}

function loaded(source, name) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error(`“${name}” is no picture that this browser can show.`));
    image.src = source;
  });
}

/** What a message says to the model: a text, or parts where it has pictures, which a model that sees none is told of. */
export async function parts(message, sees) {
  const files = message.files ?? [];
  const texts = files.filter((file) => file.text !== undefined).map(fenced);
  if (!sees) texts.push(...files.filter(isPicture).map(({ name }) => `(A picture that you cannot see: ${name})`));
  const content = [message.content, ...texts].filter(Boolean).join("\n\n");
  const pictures = [];
  for (const file of files.filter((file) => sees && isPicture(file))) {
    const found = await store.get("files", file.id);
    if (found) pictures.push({ type: "image_url", image_url: { url: found.data } });
  }
  if (!pictures.length) return content;
  return [...pictures, ...(content ? [{ type: "text", text: content }] : [])];
}

export function isPicture(file) {
  return file.text === undefined;
}

/** A text as a block of code, by marks that are not in it. */
function fenced({ name, text: content }) {
  const longest = Math.max(2, ...Array.from(content.matchAll(/`+/g), ([run]) => run.length));
  const fence = "`".repeat(longest + 1);
  const kind = /\.(\w{1,10})$/.exec(name)?.[1] ?? "";
  return `File \`${name.replaceAll("`", "'")}\`:\n\n${fence}${kind}\n${content.replace(/\n$/, "")}\n${fence}`;
}

export function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  if (bytes < 1024 * 1024) return `${Math.round(bytes / 1024)} KB`;
  return `${(bytes / 1024 / 1024).toFixed(bytes % (1024 * 1024) ? 1 : 0)} MB`;
}
