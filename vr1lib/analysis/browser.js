"use strict";
// The browser of completions: reads the JSON beside it, and only ever writes text, so that nothing in a completion runs.
(() => {
  const root = document.querySelector(".browser");
  const data = JSON.parse(document.querySelector(".browser-data").textContent);
  const cards = root.querySelector(".cards");
  const form = root.querySelector(".filters");
  const more = root.querySelector(".more");
  const PAGE = 20;
  let matches = [];
  let shown = 0;

  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const problemOf = (row) => data.problems[row.problem];
  const endOf = (row) => (row.cut ? "cut at the limit" : "finished");
  const stageOf = (row) => (row.step ? `stage ${row.stage + 1}` : "not in training");
  const verdictOf = (row) => (row.right ? "right" : row.wellFormed ? "wrong" : "malformed");

  // name → the values that a row has; a filter with fewer than two values is not shown
  const FILTERS = {
    model: (row) => [row.model],
    verdict: (row) => [verdictOf(row), ...(row.right ? [] : ["not right"])],
    format: (row) => [row.wellFormed ? "well-formed" : "not well-formed"],
    end: (row) => [endOf(row)],
    benchmark: (row) => [problemOf(row).benchmark],
    group: (row) => problemOf(row).groups,
    stage: (row) => [stageOf(row)],
    word: (row) => row.words,
  };
  const SORTS = {
    "problem by problem": (a, b) => a.problem - b.problem || a.place - b.place,
    "shortest first": (a, b) => a.tokens - b.tokens || a.place - b.place,
    "longest first": (a, b) => b.tokens - a.tokens || a.place - b.place,
    "as saved": (a, b) => a.place - b.place,
  };

  const select = (name, options) => {
    const label = make("label", `${name} `);
    const list = make("select");
    list.name = name;
    for (const [value, text] of options) {
      const option = make("option", text);
      option.value = value;
      list.append(option);
    }
    label.append(list);
    form.append(label);
  };
  for (const [name, valuesOf] of Object.entries(FILTERS)) {
    const counts = new Map();
    for (const row of data.rows) for (const value of valuesOf(row)) counts.set(value, (counts.get(value) || 0) + 1);
    const values = [...counts.keys()].filter((value) => value);
    if (name !== "model") values.sort();
    if (values.length < 2 && name !== "word") continue;
    if (values.length) select(name, [["", "all"], ...values.map((value) => [value, `${value} (${counts.get(value)})`])]);
  }
  const search = make("input");
  search.type = "search";
  search.name = "text";
  search.placeholder = "in text, question or id";
  const label = make("label", "text ");
  label.append(search);
  form.append(label);
  select("sort", Object.keys(SORTS).map((name) => [name, name]));

  const filter = () => {
    const wanted = Object.keys(FILTERS).filter((name) => form[name] && form[name].value);
    const text = search.value.trim().toLowerCase();
    const says = (row) => {
      const problem = problemOf(row);
      return [row.text, problem.question, problem.id].some((part) => part.toLowerCase().includes(text));
    };
    matches = data.rows.filter(
      (row) => wanted.every((name) => FILTERS[name](row).includes(form[name].value)) && (!text || says(row))
    );
    matches.sort(SORTS[form.sort.value]);
    root.querySelector(".matches").textContent = `${matches.length} of ${data.rows.length} match.`;
    cards.replaceChildren();
    shown = 0;
    showMore();
  };
  const showMore = () => {
    cards.append(...matches.slice(shown, shown + PAGE).map(card));
    shown = Math.min(matches.length, shown + PAGE);
    more.hidden = shown >= matches.length;
  };

  const card = (row) => {
    const problem = problemOf(row);
    const element = make("article", undefined, "example");
    element.tabIndex = -1;
    const pictures = make("div", undefined, "pictures");
    for (const index of problem.pictures) {
      const picture = make("img");
      picture.src = data.pictures[index];
      picture.alt = "picture of the problem";
      pictures.append(picture);
    }
    if (problem.leftOut) pictures.append(make("small", `${problem.leftOut} picture(s) not in this page`));
    const words = make("div", undefined, "words");
    const question = make("p", problem.question);
    (problem.choices || []).forEach((choice, index) =>
      question.append(make("br"), `${String.fromCharCode(65 + index)}: ${choice}`)
    );
    const facts = make("p", undefined, "facts");
    facts.append(make("strong", row.model), " ", make("span", verdictOf(row), `chip ${row.right ? "same" : "opposite"}`));
    facts.append(" gold ", make("code", problem.gold), " · read as ");
    facts.append(row.extracted === null ? "nothing" : make("code", row.extracted));
    const sampled = row.step ? ` · step ${row.step}, ${stageOf(row)}, sample ${row.sample + 1}` : ` · sample ${row.sample + 1}`;
    facts.append(` · ${row.tokens} tokens, ${endOf(row)}${row.step || row.sample ? sampled : ""}`);
    if (!row.right) facts.append(` · ${row.reason}`);
    const text = make("details");
    text.open = row.text.length < 600;
    text.append(make("summary", "What it said"), make("pre", row.text));
    words.append(question, facts, text, make("small", `${problem.benchmark} · ${problem.id}`));
    element.append(pictures, words);
    return element;
  };

  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", showMore);
  document.addEventListener("keydown", (event) => {
    if (!["j", "k"].includes(event.key) || event.ctrlKey || event.metaKey || /INPUT|SELECT/.test(event.target.tagName)) return;
    const all = [...cards.children];
    const place = all.indexOf(document.activeElement) + (event.key === "j" ? 1 : -1);
    if (place === all.length && !more.hidden) showMore();
    const next = cards.children[Math.max(0, place)];
    if (next) next.focus();
  });
  filter();
})();
