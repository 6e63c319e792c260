// What this browser keeps, in IndexedDB: one record for each conversation, message and picture. Tabs add records and
// change fields of them, so none overwrites what another has written.

const STORES = ["conversations", "messages", "files"];
let database = null;
/** In the place of a database where the browser allows none. */
const memory = Object.fromEntries(STORES.map((name) => [name, new Map()]));

/** Opens the database; whether there is one. */
export async function open() {
  try {
    database = await promise(upgraded(indexedDB.open("wels", 1)));
    database.onversionchange = () => database.close();
  } catch {
    database = null;
  }
  return database !== null;
}

function upgraded(request) {
  request.onupgradeneeded = () => {
    for (const name of STORES) {
      const made = request.result.createObjectStore(name, { keyPath: "id" });
      if (name !== "conversations") made.createIndex("conversation", "conversation");
    }
  };
  return request;
}

function promise(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab keeps an older database open"));
  });
}

/** Does work on stores at once or not at all; the result is the work's. */
async function within(names, mode, work) {
  if (!database) return work(Object.fromEntries(names.map((name) => [name, remembered(name)])));
  const transaction = database.transaction(names, mode);
  const ended = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error ?? new Error("the browser kept nothing"));
  });
  const stores = names.map((name) => [name, wrapped(transaction.objectStore(name))]);
  const result = await work(Object.fromEntries(stores));
  await ended;
  return result;
}

function wrapped(store) {
  return {
    get: (id) => promise(store.get(id)),
    all: () => promise(store.getAll()),
    of: (conversation) => promise(store.index("conversation").getAll(conversation)),
    put: (record) => promise(store.put(record)),
    delete: (id) => promise(store.delete(id)),
  };
}

function remembered(name) {
  const records = memory[name];
  return {
    get: async (id) => structuredClone(records.get(id)),
    all: async () => structuredClone([...records.values()]),
    of: async (id) => structuredClone([...records.values()].filter((record) => record.conversation === id)),
    put: async (record) => records.set(record.id, structuredClone(record)),
    delete: async (id) => records.delete(id),
  };
}

/** All of a store's records, or those of one conversation. */
export function all(name, conversation) {
  const read = (stores) => (conversation ? stores[name].of(conversation) : stores[name].all());
  return within([name], "readonly", read);
}

export function get(name, id) {
  return within([name], "readonly", (stores) => stores[name].get(id));
}

/** Adds a conversation with messages and files of it. Those that are there already stay as they are. */
export function add(conversation, messages = [], files = []) {
  return within(STORES, "readwrite", async (stores) => {
    let added = 0;
    const lists = [
      ["conversations", [conversation]],
      ["messages", messages],
      ["files", files],
    ];
    for (const [name, records] of lists) {
      for (const record of records) {
        if (await stores[name].get(record.id)) continue;
        await stores[name].put(record);
        added++;
      }
    }
    return added;
  });
}

/** Writes messages and files of a conversation, if it is still there. */
export function write(conversation, messages, files = []) {
  return within(STORES, "readwrite", async (stores) => {
    if (!(await stores.conversations.get(conversation))) return false;
    for (const message of messages) await stores.messages.put(message);
    for (const file of files) await stores.files.put(file);
    return true;
  });
}

/** Changes fields of a conversation and gives what it then is; `selected` is added to. */
export function change(id, fields) {
  return within(["conversations"], "readwrite", async ({ conversations }) => {
    const old = await conversations.get(id);
    if (!old) return null;
    const changed = { ...old, ...fields, selected: { ...old.selected, ...fields.selected } };
    await conversations.put(changed);
    return changed;
  });
}

export function removeMessage(id) {
  return within(["messages"], "readwrite", (stores) => stores.messages.delete(id));
}

/** Removes a conversation with all that belongs to it, for good. */
export function remove(id) {
  return within(STORES, "readwrite", async (stores) => {
    for (const name of ["messages", "files"]) {
      for (const record of await stores[name].of(id)) await stores[name].delete(record.id);
    }
    await stores.conversations.delete(id);
  });
}
