// A menu below a button: one element for all, in the browser's top layer.

import { $, button, icon } from "./dom.js";

/** Opens a menu of `[picture, label, action]` below `anchor`. */
export function openMenu(anchor, items) {
  const menu = $("menu");
  menu.replaceChildren(
    ...items.map(([picture, label, action, kind = ""]) => {
      const item = button(
        label,
        () => {
          menu.hidePopover();
          action();
        },
        `plain ${kind}`,
      );
      item.prepend(icon(picture));
      item.setAttribute("role", "menuitem");
      return item;
    }),
  );
  menu.showPopover();
  place(menu, anchor.getBoundingClientRect());
  menu.dataset.from = anchor.id;
  menu.anchor = anchor;
  anchor.setAttribute("aria-expanded", "true");
  menu.firstElementChild.focus();
}

/** Puts an open popover below or above what it belongs to, with a side in common. */
export function place(menu, at, toTheLeft = true) {
  const { offsetWidth: width, offsetHeight: height } = menu;
  const below = at.bottom + height + 8 < innerHeight;
  const left = toTheLeft ? at.right - width : at.left;
  menu.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
  menu.style.top = `${below ? at.bottom + 4 : Math.max(8, at.top - height - 4)}px`;
}

export function startMenu() {
  const menu = $("menu");
  menu.addEventListener("toggle", (event) => {
    if (event.newState === "closed") menu.anchor?.setAttribute("aria-expanded", "false");
  });
  menu.addEventListener("keydown", (event) => {
    const items = [...menu.children];
    const at = items.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
    if (event.key === "Escape" || event.key === "Tab") {
      menu.hidePopover();
      menu.anchor?.focus();
    }
    if (to === undefined && event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation();
    if (to !== undefined) items.at(to % items.length).focus();
  });
}
