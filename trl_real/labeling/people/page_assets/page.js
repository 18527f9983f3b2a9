// Runs once when the page is there; what it returns tells the server who is at work.
() => {
  const BUTTONS = { 1: "vote-left", 2: "vote-tie", 3: "vote-right", 4: "vote-skip", u: "vote-undo", U: "vote-undo" };
  const SETTLE = 300; // ms that a pair must have been on the page before a key means it
  const PATIENCE = 5000; // ms after which a missing answer is said to be missing
  const NAME = "trl_real annotator";

  let reply = null; // the server's answer that is on the page
  let key = null; // the pair in it
  let since = Infinity; // when that pair appeared
  let until = Infinity; // when that answer is old enough to be answered
  let asked = 0; // when a vote was sent that has no answer yet
  let late = null;

  const now = () => performance.now();
  const pair = () => document.getElementById("pair");
  const ready = () => reply !== null && !asked && now() >= until;

  function seen() {
    const element = pair();
    if (!element || element.dataset.reply === reply) return;
    reply = element.dataset.reply;
    asked = 0;
    clearTimeout(late);
    document.body.classList.remove("no-answer");
    // Two frames: the first one paints it, the second one knows that it was painted.
    requestAnimationFrame(() => requestAnimationFrame(() => {
      until = now() + SETTLE;
      if (element.dataset.key !== key) {
        key = element.dataset.key;
        since = now();
        const prompt = element.querySelector("#prompt .scroll");
        if (prompt) prompt.scrollTop = prompt.scrollHeight;
      }
    }));
  }

  function take() {
    const taken = { annotator: sessionStorage.getItem(NAME) || "", key: null, seconds: 0 };
    if (!ready()) return JSON.stringify(taken);
    asked = now();
    until = Infinity;
    late = setTimeout(() => document.body.classList.add("no-answer"), PATIENCE);
    return JSON.stringify({ ...taken, key, seconds: (asked - since) / 1000 });
  }

  function press(event) {
    const typing = event.target.closest?.("input, textarea, select, [contenteditable='true']");
    if (typing || event.repeat || event.isComposing || event.ctrlKey || event.altKey || event.metaKey) return;
    const digit = /^Digit([1-4])$/.exec(event.code); // where digits need a shift, the key alone will do
    const button = document.getElementById(BUTTONS[event.key] || (digit && BUTTONS[digit[1]]));
    if (!button) return;
    event.preventDefault();
    if (ready()) button.click();
  }

  function remember(name) {
    sessionStorage.setItem(NAME, name);
    return JSON.stringify({ annotator: name });
  }

  if (!window.trlReal) {
    window.trlReal = { take, remember, ready };
    document.addEventListener("keydown", press);
    const changes = { childList: true, subtree: true, attributes: true, attributeFilter: ["data-reply"] };
    new MutationObserver(seen).observe(document.body, changes);
    seen();
  }
  return JSON.stringify({ annotator: sessionStorage.getItem(NAME) || "" });
}
