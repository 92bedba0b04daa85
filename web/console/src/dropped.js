/** The files and folders that a person drops into the page, or chooses. */

/**
 * What was dropped: files with their paths, such as `photos/2026/a.jpg`, and the folders in which nothing is.
 * @typedef {object} Dropped
 * @property {{path: string, content: File}[]} files
 * @property {string[]} folders
 */

/**
 * Take what is dropped. The browser shows it during the event only, so this has to be called at once.
 * @param {DataTransfer} transfer
 * @returns {Promise<Dropped>}
 */
export function dropped(transfer) {
  const entries = [...transfer.items]
    .filter(({ kind }) => kind === "file")
    .map((item) => item.webkitGetAsEntry() ?? item.getAsFile());
  return collect(entries.filter((entry) => entry !== null));
}

/** The files of an `<input type="file">`; it names no folders that are empty. @param {FileList} files @returns {Dropped} */
export function chosen(files) {
  return {
    files: [...files].map((content) => ({ path: content.webkitRelativePath || content.name, content })),
    folders: [],
  };
}

/** @param {(FileSystemEntry | File)[]} todo */
async function collect(todo) {
  /** @type {Dropped} */
  const found = { files: [], folders: [] };
  for (let entry = todo.pop(); entry; entry = todo.pop()) {
    if (entry instanceof File) found.files.push({ path: entry.name, content: entry });
    else if (entry.isDirectory) {
      const inner = await read(/** @type {FileSystemDirectoryEntry} */ (entry));
      if (inner.length === 0) found.folders.push(entry.fullPath.slice(1));
      for (const one of inner) todo.push(one);
    } else {
      const content = await new Promise((resolve, reject) =>
        /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject),
      );
      found.files.push({ path: entry.fullPath.slice(1), content });
    }
  }
  found.files.sort((a, b) => (a.path < b.path ? -1 : 1));
  return found;
}

/** Everything in a folder: browsers give a part of it at a time. @param {FileSystemDirectoryEntry} folder */
async function read(folder) {
  const reader = folder.createReader();
  /** @type {FileSystemEntry[]} */
  const all = [];
  while (true) {
    /** @type {FileSystemEntry[]} */
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (part.length === 0) return all;
    all.push(...part);
  }
}
