// What is wrong with the open page for those who see little, use a keyboard, or have it read aloud: one line each.
() => {
  const found = [];
  const tell = (rule, element) => found.push(`${rule}: ${(element?.outerHTML ?? "").slice(0, 120)}`);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const seen = (element) => element.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: false });
  const words = (element) => (element.getAttribute("aria-label") ?? element.textContent).trim()
    || [...element.querySelectorAll("img")].map((image) => image.alt).join("").trim();

  if (!document.documentElement.lang) tell("no language", document.documentElement);
  if (!document.title.trim()) tell("no title", document.head);
  for (const name of ["main", "h1"]) if (all(name).length !== 1) tell(`${all(name).length} of ${name}`, all(name)[1]);
  const named = all("nav").map((nav) => nav.getAttribute("aria-label"));
  if (named.includes(null) || new Set(named).size !== named.length) tell("navigation without a name of its own", all("nav")[0]);
  const ids = all("[id]").map((element) => element.id);
  ids.filter((id, place) => ids.indexOf(id) !== place).forEach((id) => tell(`id ${id} twice`));
  all("img:not([alt])").forEach((image) => tell("image without alt", image));
  all("input, select").filter(seen).filter((field) => field.type !== "hidden" && !field.ariaLabel
    && !field.labels.length).forEach((field) => tell("field without a label", field));
  all("a[href], button, summary").filter(seen).filter((element) => !words(element))
    .forEach((element) => tell("link or button without a name", element));
  all("button, select").filter(seen).filter((element) => element.getBoundingClientRect().height < 24)
    .forEach((element) => tell("target below 24 px", element));
  all('[tabindex]:not([tabindex="0"]):not([tabindex="-1"])').forEach((element) => tell("order of its own", element));
  let level = 0;
  all("h1, h2, h3, h4, h5, h6").filter(seen).forEach((head) => {
    if (+head.tagName[1] > level + 1) tell(`h${level} is followed by`, head);
    level = +head.tagName[1];
  });
  all("body *").filter(seen).forEach((element) => {
    const style = getComputedStyle(element);
    if (!/auto|scroll/.test(style.overflowX + style.overflowY)) return;
    const wide = element.scrollWidth > element.clientWidth + 1 || element.scrollHeight > element.clientHeight + 1;
    if (wide && element.tabIndex < 0 && !element.querySelector("a[href], button, input, [tabindex='0']")) {
      tell("scrolls, and no key reaches it", element);
    }
    if (element.tabIndex === 0 && !element.ariaLabel) tell("region without a name", element);
  });
  if (document.documentElement.scrollWidth > innerWidth + 1) tell(`page of ${document.documentElement.scrollWidth} px`);

  const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
  const over = (top, below) => top.slice(0, 3).map((value, k) => value * (top[3] ?? 1) + below[k] * (1 - (top[3] ?? 1)));
  const behind = (element) => {
    const own = parts(getComputedStyle(element).backgroundColor);
    if ((own[3] ?? 1) === 1) return own;
    return over(own, element.parentElement ? behind(element.parentElement) : [255, 255, 255]);
  };
  const light = (colour) => colour.slice(0, 3).map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, k) => sum + value * [0.2126, 0.7152, 0.0722][k], 0);
  const told = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !seen(element) || element.closest("script, style, math")) continue;
    const style = getComputedStyle(element);
    let opacity = 1;
    for (let each = element; each; each = each.parentElement) opacity *= getComputedStyle(each).opacity;
    if (opacity === 0) continue;  // a link to a heading, which shows when it is pointed at
    const key = [style.color, style.fontSize, style.fontWeight, opacity, element.className, element.parentElement.className].join();
    if (told.has(key)) continue;
    told.add(key);
    const back = behind(element);
    const front = over([...parts(style.color).slice(0, 3), (parts(style.color)[3] ?? 1) * opacity], back);
    const [low, high] = [light(back), light(front)].sort((a, b) => a - b);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < (large ? 3 : 4.5)) tell(`contrast of ${ratio.toFixed(2)}`, element);
  }
  return found;
}
