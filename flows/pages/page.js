"use strict";
(() => {
  // What every page does: the theme, copy buttons, and details that a link or a printer opens.
  const root = document.documentElement;
  const kept = {
    read() { try { return localStorage.getItem("wind-theme"); } catch { return null; } },
    write(theme) { try { localStorage.setItem("wind-theme", theme); } catch { /* not kept */ } },
  };
  const theme = kept.read();
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;

  const isDark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;

  const say = (text) => {
    const said = document.querySelector("[data-said]");
    said.textContent = text;
    setTimeout(() => { if (said.textContent === text) said.textContent = ""; }, 2500);
  };

  const copy = async (button) => {
    const text = button.dataset.copy;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      area.className = "aside";
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    say("Copied");
  };

  const open = () => {
    let target = null;
    try { target = document.getElementById(decodeURIComponent(location.hash.slice(1))); } catch { /* no name */ }
    for (let each = target; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
    if (target) target.scrollIntoView();
  };

  document.addEventListener("DOMContentLoaded", () => {
    for (const button of document.querySelectorAll("[data-theme-toggle]")) {
      button.hidden = false;
      button.addEventListener("click", () => {
        root.dataset.theme = isDark() ? "light" : "dark";
        kept.write(root.dataset.theme);
        say(isDark() ? "Dark" : "Light");
      });
    }
    for (const button of document.querySelectorAll("[data-copy]")) {
      button.hidden = false;
      button.addEventListener("click", () => copy(button));
    }
    // A region that scrolls sideways is reached by the keyboard, and only where it does scroll.
    const scrolls = () => {
      for (const wide of document.querySelectorAll(".wide")) {
        if (wide.scrollWidth > wide.clientWidth + 1) wide.tabIndex = 0;
        else wide.removeAttribute("tabindex");
      }
    };
    scrolls();
    addEventListener("resize", scrolls);
    document.addEventListener("toggle", scrolls, true);
    if (location.hash) open();
  });
  addEventListener("hashchange", open);
})();
