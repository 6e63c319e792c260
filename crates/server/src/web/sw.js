// Keeps the page for when the server is away. What the server has comes first, so that a new version is seen at once;
// what it answers to requests of the API is never kept. The server writes `const FILES = […];` before the first line.

const CACHE = "wels-page-1";

self.addEventListener("install", (event) => {
  event.waitUntil(
    caches
      .open(CACHE)
      .then((cache) => cache.addAll(FILES))
      .then(() => self.skipWaiting()),
  );
});

self.addEventListener("activate", (event) => {
  const old = async () => {
    for (const name of await caches.keys())
      if (name.startsWith("wels-page-") && name !== CACHE) await caches.delete(name);
    await self.clients.claim();
  };
  event.waitUntil(old());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const base = new URL("./", self.location).href;
  const name = request.url.split(/[?#]/)[0].slice(base.length);
  if (request.method !== "GET" || !request.url.startsWith(base) || !FILES.includes(name || "./")) return;
  event.respondWith(fresh(request, name || "./"));
});

async function fresh(request, name) {
  try {
    const response = await fetch(request);
    if (response.ok) {
      const copy = response.clone();
      caches.open(CACHE).then((cache) => cache.put(name, copy));
    }
    return response;
  } catch (error) {
    const kept = await caches.match(name);
    if (kept) return kept;
    throw error;
  }
}
