// Settings: in localStorage, the same for all tabs.

const NAME = "wels.settings";
const DEFAULTS = {
  key: "",
  model: "",
  system: "",
  temperature: "0.6",
  top_p: "0.95",
  max_tokens: "",
  seed: "",
  draw_n: "1",
  draw_cfg: "5",
  draw_seed: "",
  theme: "auto",
};
/** The fields that are numbers: least, greatest, whether whole, and their name. */
export const NUMBERS = {
  temperature: [0, 2, false, "Temperature"],
  top_p: [0, 1, false, "Top-p"],
  max_tokens: [1, 1_000_000, true, "The longest answer"],
  seed: [-(2 ** 53) + 1, 2 ** 53 - 1, true, "The seed"],
};

/** The same of those that a drawing has. */
export const DRAWING = {
  draw_n: [1, 10, true, "The number of pictures"],
  draw_cfg: [0, 100, false, "Guidance"],
  draw_seed: [0, 2 ** 53 - 1, true, "The seed"],
};

export const settings = { ...DEFAULTS, ...stored() };

function stored() {
  try {
    const found = JSON.parse(localStorage.getItem(NAME)) ?? {};
    const known = Object.keys(DEFAULTS).filter((name) => typeof found[name] === "string");
    return Object.fromEntries(known.map((name) => [name, found[name]]));
  } catch {
    return {};
  }
}

/** Changes settings and keeps them, with what other tabs have changed; whether the browser kept them. */
export function keep(changes) {
  Object.assign(settings, stored(), changes);
  dress();
  try {
    localStorage.setItem(NAME, JSON.stringify(settings));
    return true;
  } catch {
    return false;
  }
}

/** Takes over what another tab has changed. */
export function follow(changed) {
  addEventListener("storage", (event) => {
    if (event.key !== NAME && event.key !== null) return;
    Object.assign(settings, DEFAULTS, stored());
    dress();
    changed();
  });
}

/** What is wrong with a number as it was typed, or "". */
export function wrong(name, text) {
  const [least, greatest, whole, title] = NUMBERS[name] ?? DRAWING[name];
  if (text === "") return "";
  const value = Number(text);
  if (!Number.isFinite(value) || text.trim() === "") return `${title} is a number.`;
  if (whole && !Number.isInteger(value)) return `${title} is a whole number.`;
  if (value < least || value > greatest) return `${title} is from ${least} to ${greatest}.`;
  return "";
}

/** Light or dark. */
export function dress() {
  const root = document.documentElement;
  if (settings.theme === "auto") delete root.dataset.theme;
  else root.dataset.theme = settings.theme;
  const colour = getComputedStyle(root).getPropertyValue("--side").trim();
  document.querySelector("meta[name=theme-color]")?.setAttribute("content", colour);
}
