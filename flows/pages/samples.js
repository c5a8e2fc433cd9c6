"use strict";
(() => {
  // The reader of prompts and responses. Its data come from a server, from the files of a bundle, or
  // from the page itself; the rest is the same. All text is set as text, never as markup.
  const reader = document.querySelector("[data-reader]");
  if (!reader) return;
  const $ = (name) => reader.querySelector(`[data-${name}]`);
  const settings = JSON.parse($("reader-settings").textContent);
  const fields = new Map(settings.fields.map((field) => [field.name, field]));
  const LONG = 6000; // characters of a text that are shown at first
  const DIFFERENT = 400; // parts of a difference that are shown at first
  const POLL = 5000; // milliseconds

  // ---------------------------------------------------------------------------------- elements

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === undefined || value === null || value === false) continue;
      if (name === "onclick") made.addEventListener("click", value);
      else made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  };

  // As `flows.pages.UNSEEN`: what would be invisible, or would move other text.
  const UNSEEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e0fff}]|[\ud800-\udfff]/gu;
  const code = (character) => {
    const point = character.codePointAt(0);
    const digits = point.toString(16);
    return point < 256 ? `\\x${digits.padStart(2, "0")}` : point < 65536 ? `\\u${digits.padStart(4, "0")}` : `\\U${digits.padStart(8, "0")}`;
  };
  const visible = (text) => text.replace(UNSEEN, code);

  // A text whose unseen characters stand out.
  const put = (into, text) => {
    let from = 0;
    for (const match of text.matchAll(UNSEEN)) {
      into.append(text.slice(from, match.index), element("span", { class: "unseen", title: "a character that would not be seen" }, code(match[0])));
      from = match.index + match[0].length;
    }
    into.append(text.slice(from));
    return into;
  };

  const written = (text, tag = "p", name = "text") => {
    const into = element(tag, { class: name, dir: "auto" });
    if (!text) return put(into, ""), into.append(element("span", { class: "quiet" }, "empty")), into;
    if (text.length <= LONG) return put(into, text);
    put(into, text.slice(0, LONG));
    const more = element("button", { type: "button", class: "more" }, `Show ${size(text.length - LONG)} more`);
    let at = LONG;
    more.addEventListener("click", () => {
      // A step at a time: a browser lays out a megabyte on one line for seconds.
      const end = Math.min(at + 20 * LONG, text.length);
      more.before(put(document.createDocumentFragment(), text.slice(at, end)));
      at = end;
      more.textContent = `Show ${size(text.length - at)} more`;
      more.hidden = at === text.length;
    });
    into.append("… ", more);
    return into;
  };

  const size = (characters) => characters < 10000 ? `${characters} characters` : `${Math.round(characters / 1000)} thousand characters`;
  const number = (value, digits) => value === null || value === undefined ? "–" : value.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−");
  const chip = (name, value, kind = "", title = null) =>
    element("span", { class: `chip ${kind}`, title }, element("span", { class: "of" }, name), value === null ? null : ` ${value}`);
  const plural = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

  const say = (text) => {
    const said = document.querySelector("[data-said]");
    if (!said) return;
    said.textContent = text;
    setTimeout(() => { if (said.textContent === text) said.textContent = ""; }, 2500);
  };

  // ----------------------------------------------------------------------------------- filters
  // The language of `wind.inspection.filters`.

  const TOKEN = /[ \t\r\n]*(?:(?<number>[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?![\w.]))|(?<text>"(?:[^"\\]|\\[^])*")|(?<operator>!=|>=|<=|!~|[=<>~])|(?<bracket>[()])|(?<word>[A-Za-z_][A-Za-z0-9_-]*))/y;
  const COMPARES = {
    "=": (a, b) => a === b, "!=": (a, b) => a !== b, "<": (a, b) => a < b,
    "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b,
  };
  const WORDS = ["and", "or", "not"];

  const contains = (part) => {
    const pattern = new RegExp(part.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "iu");
    return (text) => pattern.test(text);
  };

  // Returns a function of `value(field)` that says whether a prompt is meant.
  const parse = (text) => {
    if ([...text].length > 2000) throw new Error(`the filter has ${[...text].length} characters: 2000 is the most`);
    if (!/[^ \t\r\n]/.test(text)) return () => true;
    let at = 0, depth = 0, kind = "", token = "", begin = 0;
    const fail = (what) => {
      const rest = text.slice(begin, begin + 20);
      throw new Error(`the filter ${rest ? `at ${JSON.stringify(rest)}` : "at its end"}: ${what}`);
    };
    const next = () => {
      begin = text.length - text.slice(at).replace(/^[ \t\r\n]+/, "").length;
      if (begin === text.length) { kind = token = ""; return; }
      TOKEN.lastIndex = at;
      const match = TOKEN.exec(text);
      if (!match) fail("cannot be read");
      [kind, token] = Object.entries(match.groups).find(([, value]) => value !== undefined);
      at = TOKEN.lastIndex;
    };
    const takes = (wanted) => {
      if ((kind !== "word" && kind !== "bracket") || token !== wanted) return false;
      next();
      return true;
    };
    const any = () => {
      const parts = [all()];
      while (takes("or")) parts.push(all());
      return (value) => parts.some((part) => part(value));
    };
    const all = () => {
      const parts = [one()];
      while (takes("and")) parts.push(one());
      return (value) => parts.every((part) => part(value));
    };
    const one = () => {
      depth += 1;
      if (depth > 30) fail("it is nested more than 30 levels deep");
      let found;
      if (takes("not")) {
        const part = one();
        found = (value) => !part(value);
      } else if (takes("(")) {
        found = any();
        if (!takes(")")) fail("expected )");
      } else found = comparison();
      depth -= 1;
      return found;
    };
    const comparison = () => {
      if (kind !== "word" || WORDS.includes(token)) fail("expected a field");
      const field = fields.get(token);
      if (!field) fail(`there is no field ${token}: there are ${[...fields.keys()].join(", ")}`);
      next();
      if (field.kind === "yes" && kind !== "operator") return (value) => value(field.name) === true;
      const sign = token;
      const allowed = { number: ["=", "!=", "<", "<=", ">", ">="], text: ["=", "!=", "~", "!~"], yes: ["=", "!="] }[field.kind];
      if (kind !== "operator" || !allowed.includes(sign)) fail(`expected one of ${allowed.join(" ")} after ${field.name}`);
      next();
      const wanted = operand(field, sign);
      if (wanted === null) return (value) => (value(field.name) === null) === (sign === "=");
      if (sign === "~" || sign === "!~") {
        const has = contains(String(wanted));
        return (value) => value(field.name) !== null && has(value(field.name)) === (sign === "~");
      }
      return (value) => value(field.name) !== null && COMPARES[sign](value(field.name), wanted);
    };
    const operand = (field, sign) => {
      let found;
      if (kind === "word" && token === "none" && (sign === "=" || sign === "!=")) found = null;
      else if (field.kind === "number" && kind === "number") found = Number(token);
      else if (field.kind === "yes" && kind === "word" && (token === "yes" || token === "no")) found = token === "yes";
      else if (field.kind === "text" && kind === "text") found = token.slice(1, -1).replace(/\\([^])/g, "$1");
      else if (field.kind === "text" && (kind === "word" || kind === "number") && !WORDS.includes(token)) found = token;
      else fail(`expected ${{ number: "a number", yes: "yes or no", text: "a text in double quotes" }[field.kind]} after ${field.name} ${sign}`);
      next();
      return found;
    };
    next();
    const found = any();
    if (kind) fail("expected and, or, or the end");
    return found;
  };

  // By code points, as texts are sorted in the store.
  const before = (a, b) => {
    if (typeof a !== "string") return a < b ? -1 : a > b ? 1 : 0;
    const length = Math.min(a.length, b.length);
    for (let place = 0; place < length; place += 1) {
      const [x, y] = [a.charCodeAt(place), b.charCodeAt(place)];
      if (x !== y) {
        const isHigh = (unit) => unit >= 0xd800 && unit < 0xe000;
        return isHigh(x) === isHigh(y) ? x - y : isHigh(x) ? 1 : -1;
      }
    }
    return a.length - b.length;
  };

  const choose = (columns, rows, query) => {
    const meant = parse(query.where);
    const has = query.text ? contains(query.text) : null;
    const name = query.sort.replace(/^-/, "") || "prompt_id";
    if (!fields.has(name)) throw new Error(`there is no field '${name}' to sort by: there are ${[...fields.keys()].join(", ")}`);
    const sign = query.sort.startsWith("-") ? -1 : 1;
    const found = [];
    for (let row = 0; row < rows; row += 1) {
      if (has && !has(columns.text[row]) && !columns.prompt_id[row].startsWith(query.text)) continue;
      if (meant((field) => columns[field][row])) found.push(row);
    }
    const by = columns[name];
    return found.sort((a, b) => {
      const [x, y] = [by[a], by[b]];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return sign * before(x, y) || a - b;
    });
  };

  // ----------------------------------------------------------------------------------- sources

  const asked = async (path, parameters = {}, options = {}) => {
    const given = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== "" && value !== null));
    const answer = await fetch(`${path}?${given}`, options);
    const type = answer.headers.get("content-type") || "";
    if (!type.startsWith("application/json")) throw new Error((await answer.text()).slice(0, 300));
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    return told;
  };

  const served = {
    prompts: (version, query) => asked("/api/prompts", { version, ...query }),
    prompt: (version, id) => asked("/api/prompt", { version, id }),
    over: (version, id, sample) => asked("/api/over", { version, id, sample }),
    tokens: (version, id) => asked("/api/tokens", { version, id }),
    note: (version, id) => asked("/api/note", { version, id }),
    keep: (version, note) => asked("/api/note", { version }, { method: "PUT", headers: { "content-type": "application/json" }, body: JSON.stringify(note) }),
    exported: async (version) => (await fetch(`/api/notes?${new URLSearchParams({ version })}`)).text(),
    versions: () => asked("/api/versions", { run: settings.versions[0].run }),
  };

  // Pieces of data in the page, or in files beside it that hand them over when they run.
  const stored = () => {
    const pieces = new Map(Object.entries(JSON.parse($("reader-pieces")?.textContent || "{}")));
    const waiting = new Map();
    globalThis.windSamples = (name, value) => pieces.set(name, value);
    const piece = async (name) => {
      if (pieces.has(name)) return pieces.get(name);
      if (settings.source !== "files") throw new Error(`${name} is not in this page`);
      if (!waiting.has(name)) {
        waiting.set(name, new Promise((resolve, reject) => {
          const script = element("script", { src: `${settings.folder}/${name}.js` });
          script.addEventListener("load", () => resolve(pieces.get(name)));
          script.addEventListener("error", () => reject(new Error(`${script.src} cannot be read: is the whole folder there?`)));
          document.head.append(script);
        }));
      }
      return waiting.get(name);
    };
    const place = (version) => settings.versions.findIndex((each) => each.name === version);
    const indexes = new Map();
    const index = async (version) => {
      if (!indexes.has(version)) {
        const { parts } = settings.versions[place(version)];
        const columns = {};
        for (let part = 0; part < parts; part += 1) {
          const more = await piece(`${place(version)}/index-${part}`);
          for (const [name, values] of Object.entries(more)) columns[name] = (columns[name] || []).concat(values);
        }
        indexes.set(version, columns);
      }
      return indexes.get(version);
    };
    const run = settings.versions[0].run;
    const where = `wind-notes:${run}`;
    const notes = {
      all() { try { return JSON.parse(localStorage.getItem(where) || "{}"); } catch { return {}; } },
      keep(id, note) {
        const all = notes.all();
        if (note.flag || note.note.trim()) all[id] = note;
        else delete all[id];
        try { localStorage.setItem(where, JSON.stringify(all)); } catch { throw new Error("this browser keeps nothing: export the notes before closing the page"); }
      },
    };
    const full = async (version, id) => {
      const row = (await index(version)).prompt_id.indexOf(id);
      if (row < 0) throw new Error(`${version} has no prompt '${id}'`);
      const chunk = await piece(`${place(version)}/prompts-${Math.floor(row / settings.chunk)}`);
      const found = chunk[row % settings.chunk];
      const whole = (name, values) => (values || []).map((each) => ({ ...settings.defaults[name], ...each }));
      const detail = { ...settings.defaults.detail, ...found.detail };
      for (const [name, kind] of [["responses", "response"], ["against", "response"], ["verdicts", "verdict"]]) detail[name] = whole(kind, detail[name]);
      const spell = (parts, place) => parts.map(([text, isSpecial]) => [text === 0 ? detail.responses[place].response : text, isSpecial]);
      const tokens = found.tokens && { prompt: found.tokens.prompt, responses: found.tokens.responses.map(spell) };
      return { ...found, detail, tokens };
    };
    return {
      async prompts(version, query) {
        const columns = { ...await index(version) };
        const rows = columns.prompt_id.length;
        const all = notes.all();
        columns.flag = columns.prompt_id.map((id) => Boolean(all[id]?.flag));
        columns.note = columns.prompt_id.map((id) => all[id]?.note || null);
        const found = choose(columns, rows, query);
        const begin = (query.page - 1) * settings.size;
        const shown = found.slice(begin, begin + settings.size);
        return { total: found.length, rows: shown.map((row) => Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[row]]))) };
      },
      prompt: async (version, id) => (await full(version, id)).detail,
      tokens: async (version, id) => {
        const { tokens } = await full(version, id);
        if (!tokens) throw new Error("there is no tokenizer to show tokens with");
        return tokens;
      },
      async over(version, id, sample) {
        const steps = [];
        for (const each of settings.versions.slice(0, place(version) + 1)) {
          const found = await full(each.name, id).catch(() => null);
          const at = found ? found.detail.responses.findIndex((one) => one.sample_index === sample) : -1;
          steps.push({
            version: each.name, iteration: each.iteration, damage: found ? found.detail.damage : [],
            response: at < 0 ? null : found.detail.responses[at],
            difference: at < 0 ? [] : found.differences[at] || [],
          });
        }
        return steps;
      },
      note: async (version, id) => ({ flag: false, note: "", time: 0, ...notes.all()[id] }),
      async keep(version, note) {
        const kept = { ...note, version, time: Date.now() / 1000 };
        notes.keep(note.prompt_id, kept);
        return kept;
      },
      async exported(version) {
        const columns = await index(version);
        const lines = Object.entries(notes.all()).sort(([a], [b]) => before(a, b)).map(([id, note]) => JSON.stringify({
          prompt_id: id, prompt: columns.text[columns.prompt_id.indexOf(id)] ?? null, flag: note.flag,
          note: note.note, version: note.version, time: note.time,
        }));
        return lines.map((line) => `${line}\n`).join("");
      },
      versions: null,
    };
  };
  const source = settings.source === "server" ? served : stored();

  // ------------------------------------------------------------------------------------- state
  // All of it is in the address, so that every view is a link.

  const DEFAULTS = { version: settings.versions.at(-1).name, text: "", where: "", sort: "", page: 1, prompt: "", sample: -1, tokens: false, raw: false };
  const HASH = "#read?";
  const read = () => {
    const given = new URLSearchParams(location.hash.startsWith(HASH) ? location.hash.slice(HASH.length) : "");
    const found = { ...DEFAULTS };
    for (const name of ["version", "text", "where", "sort", "prompt"]) if (given.has(name)) found[name] = given.get(name);
    found.page = Math.max(1, parseInt(given.get("page"), 10) || 1);
    found.sample = given.has("sample") ? parseInt(given.get("sample"), 10) || 0 : -1;
    for (const name of ["tokens", "raw"]) found[name] = given.get(name) === "yes";
    if (!settings.versions.some((each) => each.name === found.version)) found.version = DEFAULTS.version;
    return found;
  };
  const address = (view) => {
    const given = Object.entries(view).filter(([name, value]) => value !== DEFAULTS[name] || name === "version")
      .map(([name, value]) => [name, value === true ? "yes" : String(value)]);
    return HASH + new URLSearchParams(given);
  };
  let state = read();
  let shown = { total: 0, rows: [] };
  let detail = null;

  const go = async (change, isStep = true) => {
    const was = state;
    state = { ...state, ...change };
    if (address(state) !== location.hash) history[isStep ? "pushState" : "replaceState"](null, "", address(state));
    await show(was);
  };

  const listChanged = (was) => !was || ["version", "text", "where", "sort", "page"].some((name) => was[name] !== state[name]);
  const show = async (was) => {
    if (listChanged(was)) await showList();
    if (!was || was.prompt !== state.prompt || was.version !== state.version) await showPrompt(Boolean(was) && was.prompt !== state.prompt);
    else if (["tokens", "raw", "sample"].some((name) => was[name] !== state[name])) await showResponses();
    markList();
  };

  // -------------------------------------------------------------------------------------- list

  const QUICK = [
    ["Gain", "reward_gain != none", "-reward_gain"],
    ["Loss", "reward_gain < 0", "reward_gain"],
    ["Disagreement", "disagreement > 0", "-disagreement"],
    ["Rank flips", "rank_flips > 0", "-rank_flips"],
    ["Longest", "", "-tokens_max"],
    ["Ties", "tie_share > 0", "-tie_share"],
    ["Truncated", "truncated > 0", "-truncated"],
    ["Checks", "check_failures > 0", "-check_failures"],
    ["Flagged", "flag or note != none", ""],
  ];
  let turn = 0;

  const showList = async () => {
    const mine = turn += 1;
    for (const [name, value] of [["version", state.version], ["text", state.text], ["where", state.where], ["sort", state.sort.replace(/^-/, "") || "prompt_id"]]) {
      if ($(name).value !== value) $(name).value = value;
    }
    const isDown = state.sort.startsWith("-");
    $("direction").textContent = isDown ? "↓ high first" : "↑ low first";
    for (const button of $("quick").children) {
      button.setAttribute("aria-pressed", String(button.dataset.filter === state.where && button.dataset.order === state.sort));
    }
    let found;
    try {
      found = await source.prompts(state.version, { text: state.text, where: state.where, sort: state.sort, page: state.page });
    } catch (error) {
      if (mine === turn) {
        $("complaint").textContent = visible(error.message);
        $("where").setAttribute("aria-invalid", "true");
      }
      return;
    }
    if (mine !== turn) return;
    $("complaint").textContent = "";
    $("where").removeAttribute("aria-invalid");
    shown = found;
    const pages = Math.max(1, Math.ceil(found.total / settings.size));
    $("count").textContent = found.total ? plural(found.total, "prompt") : "No prompt matches.";
    $("page-now").textContent = `Page ${state.page.toLocaleString("en")} of ${pages.toLocaleString("en")}`;
    $("page-before").disabled = state.page <= 1;
    $("page-after").disabled = state.page >= pages;
    $("list").replaceChildren(...found.rows.map(item));
    reader.querySelector(".pager").hidden = pages === 1;
    if (!state.prompt && found.rows.length && matchMedia("(min-width: 60rem)").matches) {
      state = { ...state, prompt: found.rows[0].prompt_id };
    }
  };

  const item = (row) => {
    const by = state.sort.replace(/^-/, "");
    const told = [by, "split", "win_rate", "reward_mean"].filter((name, place, all) => name && all.indexOf(name) === place && !["text", "prompt_id", "note", "answer", "flag"].includes(name)).slice(0, 3);
    const link = element("a", { href: address({ ...state, prompt: row.prompt_id, sample: -1 }), "data-id": row.prompt_id },
      put(element("span", { class: "says", dir: "auto" }), row.text.slice(0, 200) || " "),
      element("span", { class: "told" },
        row.flag ? element("span", { class: "flagged" }, "⚑ flagged") : null,
        row.note ? element("span", {}, "✎ note") : null,
        ...told.map((name) => {
          const field = fields.get(name);
          if (field.kind === "text") return element("span", {}, row[name] === "eval" ? "held out" : row[name] ?? "–");
          return element("span", { class: name === by ? "by" : "" }, `${field.title} ${number(row[name], field.digits)}`);
        })));
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      open(row.prompt_id);
    });
    return element("li", {}, link);
  };

  const open = async (prompt) => {
    reader.dataset.view = "prompt";
    await go({ prompt, sample: -1 });
    if (matchMedia("(max-width: 60rem)").matches) $("prompt").focus();
  };

  const markList = () => {
    for (const link of $("list").querySelectorAll("a")) {
      const isHere = link.dataset.id === state.prompt;
      if (isHere) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
      if (isHere) {
        // Of the list alone: the page stays where it is.
        const list = $("list"), above = link.offsetTop - list.offsetTop;
        if (above < list.scrollTop) list.scrollTop = above;
        else if (above + link.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = above + link.offsetHeight - list.clientHeight;
      }
    }
  };

  const step = async (by) => {
    const at = shown.rows.findIndex((row) => row.prompt_id === state.prompt) + by;
    if (at >= 0 && at < shown.rows.length) return open(shown.rows[at].prompt_id);
    const pages = Math.ceil(shown.total / settings.size);
    const page = state.page + by;
    if (page < 1 || page > pages) return say(by > 0 ? "This is the last prompt" : "This is the first prompt");
    state = { ...state, page };
    await showList();
    return open(shown.rows.at(by > 0 ? 0 : -1).prompt_id);
  };

  // ------------------------------------------------------------------------------------ prompt

  let reading = 0;
  const showPrompt = async (isOther) => {
    const mine = reading += 1;
    const into = $("prompt");
    if (!state.prompt) {
      detail = null;
      into.replaceChildren(element("p", { class: "quiet nothing" }, "Choose a prompt."));
      return;
    }
    let found, note;
    try {
      [found, note] = await Promise.all([source.prompt(state.version, state.prompt), source.note(state.version, state.prompt)]);
    } catch (error) {
      if (mine === reading) into.replaceChildren(backward(), element("p", { class: "complaint", role: "alert" }, visible(error.message)));
      return;
    }
    if (mine !== reading) return;
    detail = found;
    const at = shown.rows.findIndex((row) => row.prompt_id === state.prompt);
    const row = at < 0 ? null : shown.rows[at];
    const place = at < 0 ? "" : `${((state.page - 1) * settings.size + at + 1).toLocaleString("en")} of ${shown.total.toLocaleString("en")}`;
    into.replaceChildren(
      backward(),
      element("header", { class: "head" },
        element("div", { class: "line" },
          element("button", { type: "button", onclick: () => step(-1), "aria-label": "Prompt before" }, "←"),
          element("span", { class: "quiet small" }, place),
          element("button", { type: "button", onclick: () => step(1), "aria-label": "Prompt after" }, "→"),
          element("span", { class: "space" }),
          flagButton(note),
          element("button", { type: "button", onclick: copyLink }, "Copy link")),
        element("h2", {}, "Prompt ", element("code", {}, visible(state.prompt.slice(0, 12)))),
        element("p", { class: "chips" },
          chip(detail.split === "eval" ? "held out" : visible(detail.split), null),
          detail.answer === null ? null : element("span", { class: "chip" }, element("span", { class: "of" }, "gold answer"), " ", put(element("bdi"), detail.answer.length > 80 ? `${detail.answer.slice(0, 80)}…` : detail.answer)),
          ...(row ? ["reward_mean", "reward_gain", "reward_change", "win_rate", "disagreement", "rank_flips", "tie_share", "check_failures"] : [])
            .filter((name) => row[name] !== null && (name !== "check_failures" || row[name] > 0))
            .map((name) => chip(fields.get(name).title, number(row[name], fields.get(name).digits), name === "check_failures" ? "warn" : "", fields.get(name).meaning)))),
      ...detail.damage.map((line) => element("p", { class: "complaint" }, visible(line))),
      element("section", { class: "chat", "aria-label": "Conversation" }, ...detail.messages.map(message)),
      element("div", { "data-responses": true }),
      noteForm(note),
      asides());
    if (isOther) into.scrollTop = 0;
    await showResponses();
  };

  const backward = () => element("p", { class: "back" }, element("button", { type: "button", onclick: () => {
    reader.dataset.view = "list";
    const link = $("list").querySelector("[aria-current]");
    if (link) link.focus();
  } }, "← All prompts"));

  const message = ({ role, content }) => element("div", { class: `message ${["user", "system", "assistant"].includes(role) ? role : ""}` },
    element("p", { class: "role" }, visible(role)), written(content));

  const copyLink = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      say("Link copied");
    } catch { say("The address bar has the link"); }
  };

  const flagButton = (note) => {
    const button = element("button", { type: "button", class: "flag", "aria-pressed": String(note.flag), "data-flag": true }, "");
    const paint = () => { button.textContent = button.getAttribute("aria-pressed") === "true" ? "⚑ Flagged" : "⚐ Flag"; };
    paint();
    button.addEventListener("click", async () => {
      const flag = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(flag));
      paint();
      await keep();
    });
    return button;
  };

  const noteForm = (note) => {
    const area = element("textarea", { rows: 2, maxlength: 20000, "data-note": true });
    area.value = note.note;
    const saved = element("span", { class: "quiet small", role: "status", "data-saved": true },
      note.time ? `saved ${new Date(note.time * 1000).toLocaleString()}` : "");
    let waiting = 0;
    area.addEventListener("input", () => { clearTimeout(waiting); saved.textContent = "…"; waiting = setTimeout(keep, 700); });
    area.addEventListener("change", () => { clearTimeout(waiting); keep(); });
    return element("section", { class: "note" }, element("label", {}, element("span", {}, "Note on this prompt"), area),
      element("div", { class: "line" }, saved, element("span", { class: "space" }),
        element("button", { type: "button", onclick: exportNotes }, "Export all notes")));
  };

  const keep = async () => {
    const id = state.prompt;
    const note = { prompt_id: id, flag: $("flag").getAttribute("aria-pressed") === "true", note: $("note").value };
    try {
      await source.keep(state.version, note);
      if (state.prompt === id && $("saved")) $("saved").textContent = "saved";
      const row = shown.rows.find((each) => each.prompt_id === id);
      if (row) {
        Object.assign(row, { flag: note.flag, note: note.note || null });
        [...$("list").children].find((each) => each.firstChild.dataset.id === id)?.replaceWith(item(row));
        markList();
      }
    } catch (error) { if ($("saved")) $("saved").textContent = visible(error.message); }
  };

  const exportNotes = async () => {
    const url = URL.createObjectURL(new Blob([await source.exported(state.version)], { type: "application/x-ndjson" }));
    element("a", { href: url, download: `${settings.versions[0].run}-notes.jsonl` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };

  const asides = () => {
    const raw = element("details", { "data-raw": true, open: state.raw }, element("summary", {}, "Raw JSON"));
    const fill = () => {
      if (raw.open && raw.children.length === 1) {
        const text = JSON.stringify(detail, null, 1).replace(/[\u007f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
        const block = written(text, "pre", "raw");
        block.tabIndex = 0;
        raw.append(block);
      }
      if (raw.open !== state.raw) go({ raw: raw.open }, false);
    };
    raw.addEventListener("toggle", fill);
    const rendered = element("details", {}, element("summary", {}, "The rendered prompt, as the model reads it"), written(detail.prompt, "pre"));
    const meta = detail.meta === "{}" ? null : element("details", {}, element("summary", {}, "Other fields of its row"), written(detail.meta, "pre"));
    for (const block of [rendered, meta]) if (block) block.lastChild.tabIndex = 0;
    return element("section", { class: "asides", "aria-label": "More about this prompt" }, rendered, meta, raw);
  };

  // --------------------------------------------------------------------------------- responses

  const showResponses = async () => {
    const into = $("responses");
    if (!into || !detail) return;
    const mine = reading;
    let tokens = null, complaint = "";
    if (state.tokens) {
      try { tokens = await source.tokens(state.version, state.prompt); } catch (error) { complaint = error.message; }
    }
    const sample = detail.responses.some((each) => each.sample_index === state.sample) ? state.sample : -1;
    let steps = [];
    if (sample >= 0 && settings.versions.length > 1) {
      try { steps = await source.over(state.version, state.prompt, sample); } catch (error) { complaint = error.message; }
    }
    if (mine !== reading) return;
    const held = document.activeElement?.closest("[data-sample]")?.dataset.sample;
    into.replaceChildren(
      element("div", { class: "line bar" },
        element("h3", {}, detail.responses.length ? plural(detail.responses.length, "response") : "No responses in this iteration"),
        element("span", { class: "space" }),
        element("button", { type: "button", "aria-pressed": String(state.tokens), onclick: () => go({ tokens: !state.tokens }, false) }, "Special tokens")),
      complaint ? element("p", { class: "complaint", role: "alert" }, visible(complaint)) : "",
      tokens ? element("div", { class: "panel tokens" }, element("p", { class: "role" }, "prompt with special tokens"), spelled(tokens.prompt)) : "",
      element("div", { class: "responses" }, ...detail.responses.map((each, place) => card(each, tokens && tokens.responses[place], sample))),
      sample >= 0 && steps.length > 1 ? overIterations(sample, steps) : "",
      detail.against.length ? opposite() : "",
      verdictTable());
    // What scrolls is reached by the keyboard.
    for (const text of $("prompt").querySelectorAll(".text")) if (text.scrollHeight > text.clientHeight + 1) text.tabIndex = 0;
    if (held !== undefined) into.querySelector(`.responses [data-sample="${Number(held)}"] .pick`)?.focus({ preventScroll: true });
  };

  const spelled = (stretches) => {
    const into = element("p", { class: "text", dir: "auto" });
    let left = LONG;
    for (const [text, isSpecial] of stretches) {
      if (left <= 0) { into.append("…"); break; }
      const part = text.slice(0, left);
      left -= part.length;
      into.append(isSpecial ? put(element("span", { class: "special" }), part) : put(document.createDocumentFragment(), part));
    }
    return into;
  };

  const chipsOf = (each, count) => [
    each.rank === null ? null : chip("rank", `${each.rank} of ${count}`, each.rank === 1 ? "good" : ""),
    each.win_rate === null ? null : chip("win rate", number(each.win_rate, 2)),
    each.reward === null ? null : chip("reward", number(each.reward, 3)),
    each.accuracy === null ? null : each.accuracy === 1 ? chip("✓ gold answer", null, "good") : chip("✗ not the gold answer", null, "bad"),
    each.finish_reason === "length" ? chip("✂ truncated", null, "warn", "max_new_tokens ended it") : null,
    each.step === null ? null : chip("step", String(each.step)),
    each.drawn_from === "anchor" ? chip("of the anchor", null) : null,
    each.role === null || each.role === "all" ? null : chip("in training", each.role.replace("_", " ")),
  ];

  const card = (each, stretches, sample) => {
    const isHere = each.sample_index === sample;
    const numbers = [
      ["tokens", each.tokens, 0],
      ...(each.wins === null ? [] : [["wins", each.wins, 0], ["ties", each.ties, 0], ["losses", each.losses, 0]]),
      ["tie share", each.tie_share, 3], ["label in training", each.label, 3],
      ["log-probability, policy", each.logp_policy, 3], ["log-probability, reference", each.logp_reference, 3],
      ["log-probability, sampler", each.logp_sampler, 3],
      ...Object.entries(each.components).map(([name, value]) => [visible(name), value, 4]),
    ].filter(([, value]) => value !== null && value !== undefined);
    const verdicts = detail.verdicts.filter((verdict) => verdict.sample_index === each.sample_index);
    const title = `Sample ${each.sample_index}`;
    const canFollow = settings.versions.length > 1;
    return element("section", { class: `response${isHere ? " is-here" : ""}`, "data-sample": each.sample_index, "aria-label": title },
      element("div", { class: "line" },
        canFollow
          ? element("button", { type: "button", class: "pick", "aria-pressed": String(isHere), title: "Follow it over the iterations (n, p)", onclick: () => go({ sample: isHere ? -1 : each.sample_index }, false) }, title)
          : element("strong", {}, title),
        element("span", { class: "space" }),
        element("span", { class: "quiet small" }, plural(each.tokens, "token"))),
      element("p", { class: "chips" }, ...chipsOf(each, each.step === null ? detail.responses.length : new Set(detail.responses.map((one) => one.sample_index)).size).filter(Boolean)),
      stretches ? spelled(stretches) : written(each.response),
      element("details", {}, element("summary", {}, "Numbers"),
        element("dl", { class: "numbers" },
          ...numbers.map(([name, value, digits]) => element("div", {}, element("dt", {}, name), element("dd", {}, number(value, digits)))),
          ...verdicts.map((verdict) => element("div", {}, element("dt", {}, visible(`${verdict.judge} against ${verdict.opponent}`)), element("dd", {}, number(verdict.win_rate, 2)))))));
  };

  // What is known of a difference is how long its parts are.
  const different = (step, last) => {
    const into = element("p", { class: "text", dir: "auto" });
    let [old, fresh] = [0, 0];
    if (!step.difference.length) return written(step.response.response);
    for (const [sign, length] of step.difference.slice(0, DIFFERENT)) {
      const text = sign === "-" ? last.slice(old, old + length) : step.response.response.slice(fresh, fresh + length);
      if (sign !== "+") old += length;
      if (sign !== "-") fresh += length;
      const part = text.length > LONG ? `${text.slice(0, LONG)}…` : text;
      into.append(sign === "=" ? put(document.createDocumentFragment(), part) : put(element(sign === "-" ? "del" : "ins"), part));
    }
    if (step.difference.length > DIFFERENT) into.append("…");
    return into;
  };

  const overIterations = (sample, steps) => {
    let last = "";
    const entries = steps.map((each) => {
      const isHere = each.version === state.version;
      const body = each.response === null
        ? element("p", { class: "quiet" }, "This iteration did not sample the prompt.")
        : different(each, last);
      const isSame = each.difference.length === 1 && each.difference[0][0] === "=";
      if (each.response !== null) last = each.response.response;
      return element("li", { class: isHere ? "is-here" : null },
        element("div", { class: "line" },
          element("button", { type: "button", class: "pick", "aria-pressed": String(isHere), onclick: () => go({ version: each.version }) }, `Iteration ${each.iteration}`),
          element("span", { class: "chips" }, ...(each.response === null ? [] : chipsOf(each.response, detail.responses.length)).filter(Boolean),
            isSame ? chip("= as before", null) : null)),
        body);
    });
    return element("section", { class: "over", "aria-label": `Sample ${sample} over the iterations` },
      element("h3", {}, `Sample ${sample} over the iterations`),
      element("p", { class: "quiet small" }, "Words that an iteration ", element("ins", {}, "added"), " or ", element("del", {}, "removed"), " since the one before."),
      element("ol", {}, ...entries));
  };

  const opposite = () => element("details", { class: "against", open: detail.against.length <= 4 },
    element("summary", {}, `${plural(detail.against.length, "response")} of the policy it is compared with`),
    element("div", { class: "responses" }, ...detail.against.map((each) => element("section", { class: "response other", "aria-label": `Compared with, sample ${each.sample_index}` },
      element("div", { class: "line" }, element("strong", {}, `Compared with · sample ${each.sample_index}`), element("span", { class: "space" }), element("span", { class: "quiet small" }, plural(each.tokens, "token"))),
      element("p", { class: "chips" }, each.reward === null ? null : chip("reward", number(each.reward, 3)), each.finish_reason === "length" ? chip("✂ truncated", null, "warn") : null),
      written(each.response)))));

  const verdictTable = () => {
    if (!detail.verdicts.length) return "";
    const groups = new Map();
    for (const each of detail.verdicts) {
      const name = JSON.stringify([each.judge, each.opponent]);
      groups.set(name, [...(groups.get(name) || []), each]);
    }
    const mean = (values) => values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
    return element("section", { class: "verdicts", "aria-label": "Judges" }, element("h3", {}, "Judges"),
      element("div", { class: "wide" }, element("table", {},
        element("thead", {}, element("tr", {}, ...["Judge", "Against", "Win rate", "Ties"].map((title, place) => element("th", { scope: "col", class: place > 1 ? "number" : null }, title)))),
        element("tbody", {}, ...[...groups.values()].map((each) => element("tr", {},
          element("th", { scope: "row" }, visible(each[0].judge)), element("td", {}, visible(each[0].opponent)),
          element("td", { class: "number" }, number(mean(each.map((one) => one.win_rate).filter((value) => value !== null)), 3)),
          element("td", { class: "number" }, number(mean(each.map((one) => one.tie_share).filter((value) => value !== null)), 3))))))));
  };

  // ------------------------------------------------------------------------------------ events

  const listVersions = () => {
    $("version").replaceChildren(...settings.versions.map((each) => element("option", { value: each.name }, `${each.iteration} · ${each.name}`)));
    $("version").value = state.version;
  };

  const moveSample = (by) => {
    if (!detail || !detail.responses.length) return;
    const samples = [...new Set(detail.responses.map((each) => each.sample_index))];
    const at = samples.indexOf(state.sample);
    const next = at < 0 ? (by > 0 ? 0 : samples.length - 1) : (at + by + samples.length) % samples.length;
    go({ sample: samples[next] }, false).then(() => reader.querySelector(`[data-sample="${samples[next]}"]`)?.scrollIntoView({ block: "nearest" }));
  };

  const moveIteration = (by) => {
    const at = settings.versions.findIndex((each) => each.name === state.version) + by;
    if (at < 0 || at >= settings.versions.length) return say(by > 0 ? "This is the last iteration" : "This is the first iteration");
    return go({ version: settings.versions[at].name });
  };

  const KEYS = {
    j: () => step(1), k: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1),
    n: () => moveSample(1), p: () => moveSample(-1), i: () => moveIteration(1), I: () => moveIteration(-1),
    f: () => $("flag")?.click(), t: () => go({ tokens: !state.tokens }, false),
    "/": () => { reader.dataset.view = "list"; $("text").focus(); $("text").select(); },
    "?": () => $("help").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input, textarea, select");
    if (event.key === "Escape" && isTyping) event.target.blur();
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || $("help").open || !Object.hasOwn(KEYS, event.key)) return;
    const { top, bottom } = reader.getBoundingClientRect();
    if (bottom < 0 || top > innerHeight) return;
    if (event.key.startsWith("Arrow") && event.target.closest(".wide, pre")) return;
    event.preventDefault();
    KEYS[event.key]();
  });

  let typing = 0;
  const typed = (name) => $(name).addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => go({ [name]: $(name).value, page: 1 }, false), 250);
  });
  typed("text");
  typed("where");
  $("find").addEventListener("submit", (event) => { event.preventDefault(); go({ text: $("text").value, where: $("where").value, page: 1 }, false); });
  $("version").addEventListener("change", () => go({ version: $("version").value }));
  $("sort").addEventListener("change", () => {
    const field = fields.get($("sort").value);
    go({ sort: field.name === "prompt_id" ? "" : `${field.first === "highest" ? "-" : ""}${field.name}`, page: 1 });
  });
  $("direction").addEventListener("click", () => go({ sort: state.sort.startsWith("-") ? state.sort.slice(1) : `-${state.sort || "prompt_id"}`, page: 1 }));
  $("page-before").addEventListener("click", () => go({ page: state.page - 1 }));
  $("page-after").addEventListener("click", () => go({ page: state.page + 1 }));
  $("help-button").addEventListener("click", () => $("help").showModal());
  const moved = () => {
    const was = state;
    state = read();
    if (address(state) !== address(was)) show(was);
  };
  addEventListener("popstate", moved);
  addEventListener("hashchange", moved);

  $("sort").append(...settings.fields.map((field) => element("option", { value: field.name }, field.title)));
  $("quick").append(...QUICK.map(([title, where, sort]) => element("button", {
    type: "button", "data-filter": where, "data-order": sort, "aria-pressed": "false",
    onclick: () => state.where === where && state.sort === sort ? go({ where: "", sort: "", page: 1 }) : go({ where, sort, page: 1 }),
  }, title)));
  $("fields").append(...settings.fields.map((field) => element("tr", {}, element("th", { scope: "row" }, element("code", {}, field.name)), element("td", {}, field.meaning))));
  listVersions();
  if (state.prompt) reader.dataset.view = "prompt";

  let failed = 0; // requests in a row
  const poll = async () => {
    try {
      const found = await source.versions();
      failed = 0;
      if (found.length > settings.versions.length) {
        settings.versions = found;
        listVersions();
        say(`${found.at(-1).name} is here`);
      }
    } catch { failed += 1; }
    if (failed < 3) setTimeout(poll, POLL);
    else say("The server has ended: run wind ui again");
  };
  if (source.versions) setTimeout(poll, POLL);
  show(null).then(() => { reader.dataset.ready = "yes"; });
})();
