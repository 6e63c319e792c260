// Elements from script. No text is ever parsed as HTML: the server's policy forbids it.

export const $ = (id) => document.getElementById(id);

/** An element with a class and children, which are elements or text. */
export function node(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** A picture: one of the symbols at the end of index.html. */
export function icon(name) {
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  picture.setAttribute("class", "icon");
  picture.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  picture.append(use);
  return picture;
}

/** An image whose pixels, where it has few, are seen as they are. */
export function imageNode(className = "") {
  const made = node("img", className);
  made.addEventListener("load", () => made.classList.toggle("pixels", made.naturalWidth < 128));
  return made;
}

/** A button with a text. */
export function button(label, action, className = "plain") {
  const made = node("button", className, label);
  made.type = "button";
  if (action) made.addEventListener("click", action);
  return made;
}

/** A button with a picture, whose text is for screen readers and for who waits over it. */
export function iconButton(name, label, action, className = "plain") {
  const made = button("", action, `${className} square`);
  made.append(icon(name));
  made.setAttribute("aria-label", label);
  made.title = label;
  return made;
}

/** A name that no other record has, also where `crypto.randomUUID` is not: on pages without TLS. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Says something to those who look and to those who listen; it goes away by itself. */
export function say(text) {
  $("status").textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => {
    $("status").textContent = "";
  }, 6000);
}

/** A notice at the foot of the page with something to do about it, for `seconds`. */
export function toast(text, label, action, seconds = 10) {
  const box = node("div", "toast", node("span", "", text));
  const away = () => box.remove();
  if (label)
    box.append(
      button(
        label,
        () => {
          away();
          action();
        },
        "link",
      ),
    );
  box.append(iconButton("close", "Dismiss", away));
  $("toasts").replaceChildren(box);
  setTimeout(away, seconds * 1000);
}

/** Copies, also on pages without TLS, where there is no `navigator.clipboard`. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    if (!copyBySelection(text)) return say("The browser does not allow copying.");
  }
  say("Copied.");
}

function copyBySelection(text) {
  const focused = document.activeElement;
  const area = node("textarea", "offstage");
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

/** Asks a question in a dialog; the promise is whether it was agreed to. */
export function ask(title, text, yes, no = "Cancel") {
  const dialog = $("ask");
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  $("ask-no").textContent = no;
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Gives a file to whoever sits there. */
export function download(name, type, content) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  const link = node("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
