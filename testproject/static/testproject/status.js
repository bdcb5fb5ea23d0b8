// Keeps the status page current: asks for status.json every second and writes what
// has changed into the page. Between two answers the clocks run on by themselves.
"use strict";

const EVERY = 1000;
const live = document.getElementById("live");
const liveText = document.getElementById("live-text");
const pause = document.getElementById("pause");
const problem = document.getElementById("problem");
const announce = document.getElementById("announce");

let snapshot = JSON.parse(document.getElementById("snapshot").textContent);
let receivedAt = performance.now();
let paused = false;
let timer = 0;
let round = 0; // an answer to an earlier round, from before a pause, is not for us

const clockTime = (iso) => (iso ? iso.slice(11, 19) : "–");

function duration(seconds) {
  if (seconds === null) return "–";
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  if (seconds < 6000) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

function put(card, field, text) {
  const element = card.querySelector(`[data-field="${field}"]`);
  if (element.textContent !== text) element.textContent = text;
}

function putError(card, field, text) {
  put(card, field, text || "");
  card.querySelector(".error").hidden = !text;
}

function find(kind, name) {
  return document.querySelector(`[data-${kind}="${CSS.escape(name)}"]`);
}

const WORDS = {
  waiting: "no token yet",
  fresh: "fresh",
  due: "renewal due",
  failing: "renewal failing",
  expired: "expired",
  broken: "settings are wrong",
};

// Everything that moves with the clock, four times a second.
function tick() {
  if (paused) return;
  const since = (performance.now() - receivedAt) / 1000;
  for (const identity of snapshot.identities) {
    const card = find("identity", identity.identity);
    const lives = identity.life !== null;
    if (lives && identity.age + since >= identity.life) {
      // Also while the site is silent: time goes on without it.
      card.dataset.state = "expired";
      put(card, "state", WORDS.expired);
    }
    const age = lives ? Math.min(identity.age + since, identity.life) : null;
    put(card, "age", duration(age));
    put(card, "remaining", duration(lives ? identity.life - age : null));
    const track = card.querySelector(".track");
    card.querySelector(".fill").style.width = lives ? `${(100 * age) / identity.life}%` : "0";
    track.setAttribute("aria-valuemax", lives ? Math.round(identity.life) : 0);
    track.setAttribute("aria-valuenow", lives ? Math.round(age) : 0);
    track.setAttribute(
      "aria-valuetext",
      lives ? `${duration(age)} old, ${duration(identity.life - age)} left` : "no token",
    );
    const mark = card.querySelector(".mark");
    const after = identity.renewal_after;
    mark.hidden = !lives || after === null || after > identity.life;
    if (!mark.hidden) mark.style.left = `${(100 * after) / identity.life}%`;
    const wait = lives && after !== null ? after - identity.age - since : null;
    put(card, "due", wait !== null && wait > 0 ? `renewal in ${duration(wait)}` : "");
  }
}

function showIdentity(identity, before) {
  const card = find("identity", identity.identity);
  card.dataset.state = identity.state;
  put(card, "state", WORDS[identity.state]);
  put(card, "renewals", String(identity.renewals));
  put(card, "failures", String(identity.failures));
  put(card, "kind", identity.kind ?? "–");
  put(card, "oid", identity.oid ?? "–");
  for (const field of ["renewed_at", "next_renewal_at", "expires_at"]) {
    put(card, field, clockTime(identity[field]));
  }
  putError(card, "last_error", identity.last_error);
  if (before && identity.renewed_at !== before.renewed_at) {
    const life = card.querySelector(".life");
    life.classList.remove("renewed");
    void life.offsetWidth; // lets the animation begin anew
    life.classList.add("renewed");
    announce.textContent = `Token of ${identity.identity} renewed.`;
  } else if (before && identity.state !== before.state && identity.state !== "due") {
    announce.textContent = `${identity.identity}: ${WORDS[identity.state]}.`;
  }
}

function showCache(cache) {
  const card = find("cache", cache.alias);
  card.dataset.state = cache.error ? "failing" : "fresh";
  put(card, "state", cache.error ? "fails" : "answers");
  put(card, "round_trip_ms", cache.round_trip_ms === null ? "–" : cache.round_trip_ms.toFixed(2));
  for (const field of ["connections_idle", "connections_in_use"]) {
    put(card, field, String(cache[field] ?? "–"));
  }
  putError(card, "error", cache.error);
}

function showEvents(events) {
  const list = document.getElementById("events");
  const newest = events.length ? events[0].at : "";
  if (list.dataset.newest === newest) return;
  list.dataset.newest = newest;
  const several = snapshot.identities.length > 1;
  list.replaceChildren(
    ...(events.length ? events : [{ at: null, text: "Nothing yet." }]).map((event) => {
      const item = document.createElement("li");
      const text = document.createElement("span");
      text.textContent =
        (several && event.identity ? `${event.identity}: ` : "") +
        event.text +
        (event.times > 1 ? ` (${event.times} times)` : "");
      if (event.at) {
        item.dataset.ok = String(event.ok);
        const time = document.createElement("time");
        time.dateTime = event.at;
        time.textContent = clockTime(event.at);
        item.append(time);
      }
      item.append(text);
      return item;
    }),
  );
}

function show(fresh) {
  const before = new Map(snapshot.identities.map((identity) => [identity.identity, identity]));
  // Another process of the server has answered: its token is another one.
  const same = fresh.pid === snapshot.pid;
  snapshot = fresh;
  receivedAt = performance.now();
  for (const identity of fresh.identities) {
    showIdentity(identity, same ? before.get(identity.identity) : undefined);
  }
  fresh.caches.forEach(showCache);
  showEvents(fresh.events);
  document.getElementById("pid").textContent = fresh.pid;
  tick();
}

function say(state, text, trouble) {
  live.dataset.state = state;
  document.body.classList.toggle("stale", state === "lost");
  liveText.textContent = text;
  problem.hidden = !trouble;
  // Written only when it is new: it is read aloud each time.
  if (trouble && problem.textContent !== trouble) problem.textContent = trouble;
}

async function ask(mine) {
  try {
    const answer = await fetch(live.dataset.url, { cache: "no-store", signal: AbortSignal.timeout(15000) });
    const fresh = answer.ok ? await answer.json() : null;
    if (mine !== round) return false;
    if (answer.status === 401 || answer.status === 403) {
      say("lost", "stopped", "You are not logged in any more. Load the page again to log in.");
      return false;
    }
    if (!fresh) {
      const why = answer.status === 503 ? "the cache, where sessions live, cannot be reached" : `status ${answer.status}`;
      say("lost", "trying again", `The site cannot answer (${why}). What you see is its last answer.`);
      return true;
    }
    show(fresh);
    say("live", "live", "");
  } catch {
    if (mine !== round) return false;
    say("lost", "trying again", "The site does not answer. What you see is its last answer.");
  }
  return true;
}

async function run() {
  clearTimeout(timer);
  round += 1;
  if (paused || document.hidden) return;
  // setTimeout after the answer, not setInterval: a slow site is not asked twice.
  if (await ask(round)) timer = setTimeout(run, EVERY);
}

pause.addEventListener("click", () => {
  paused = !paused;
  pause.setAttribute("aria-pressed", String(paused));
  if (paused) say("paused", "paused", "");
  run();
});
document.addEventListener("visibilitychange", run);

live.hidden = false;
show(snapshot);
setInterval(tick, 250);
run();
