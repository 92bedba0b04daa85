/** Yjs updates: those that the service takes, and their base64. */

import { writeVarUint } from "lib0/encoding";
import * as Y from "yjs";

/**
 * What of a document is not stored yet.
 * @typedef {object} Lack
 * @property {Map<number, number>} from client id → clock of its first struct that is missing
 * @property {DeleteSet[]} deletes
 */

/** @typedef {ReturnType<typeof Y.createDeleteSet>} DeleteSet */

/** The most bytes of a struct without its text, and of a UTF-16 unit. */
const STRUCT_BYTES = 60;
const CHARACTER_BYTES = 3;
/** How many bytes become characters at a time: more arguments than that are too many for a call. */
const PIECE = 8192;

/**
 * Encode what the service lacks of a document, in updates of about so many bytes at most. What was typed or pasted at
 * once is cut if it must be; each update is complete when those before it are stored.
 * @param {Y.Doc} doc
 * @param {Lack} lack
 * @param {number} most
 * @param {unknown} origin of the transaction that cuts
 * @returns {Uint8Array[]}
 */
export function encodeParts(doc, lack, most, origin) {
  const whole = encodeUpdate(doc, lack);
  // What several copies typed refers to each other, in any order. It comes from earlier copies, and is rarely large.
  if (whole.length <= most || lack.from.size !== 1) return [whole];
  const [[client, from]] = lack.from;
  const end = Y.getState(doc.store, client);
  /** @type {Uint8Array[]} */
  const parts = [];
  // Yjs joins what was cut when the transaction ends.
  doc.transact((transaction) => {
    for (let clock = from; clock < end; ) {
      const next = cut(transaction, client, clock, most);
      const deletes = next === end ? lack.deletes : [];
      parts.push(encodeUpdate(doc, { from: new Map([[client, clock]]), deletes }, next));
      clock = next;
    }
  }, origin);
  return parts;
}

/**
 * Find where an update that begins at this clock may end, and cut the struct that would be too large.
 * @param {Y.Transaction} transaction
 * @param {number} client
 * @param {number} clock
 * @param {number} most
 * @returns {number} a clock
 */
function cut(transaction, client, clock, most) {
  const structs = structsOf(transaction.doc, client);
  let room = most;
  let at = clock;
  for (let index = Y.findIndexSS(structs, clock); index < structs.length; index++) {
    const struct = structs[index];
    const text = struct instanceof Y.Item && struct.content instanceof Y.ContentString ? struct.content.str : "";
    const end = struct.id.clock + struct.length;
    room -= STRUCT_BYTES + (text ? CHARACTER_BYTES * (end - at) : 0);
    if (room < 0 && at > clock) return at;
    if (room < 0 && text) {
      const units = Math.max(2, Math.floor((most - STRUCT_BYTES) / CHARACTER_BYTES));
      const offset = at - struct.id.clock + units;
      // Half of a surrogate pair would be lost.
      const isInPair = /[\ud800-\udbff]/.test(text[offset - 1]);
      const middle = struct.id.clock + offset - (isInPair ? 1 : 0);
      if (middle >= end) return end;
      Y.getItemCleanStart(transaction, Y.createID(client, middle));
      return middle;
    }
    at = end;
  }
  return at;
}

/** @param {Y.Doc} doc @param {number} client */
function structsOf(doc, client) {
  return /** @type {(Y.Item | Y.GC)[]} */ (doc.store.clients.get(client));
}

/**
 * Encode a part of a document: the structs that are missing, and these deletions. Yjs' own `encodeStateAsUpdate` puts
 * all deletions that were ever made into each update, and `mergeUpdates` joins no neighbours.
 * @param {Y.Doc} doc
 * @param {Lack} lack
 * @param {number} [until] a clock at which a struct begins: structs from there on are left out
 * @returns {Uint8Array}
 */
export function encodeUpdate(doc, { from, deletes }, until = Infinity) {
  const encoder = new Y.UpdateEncoderV1();
  const missing = [...from].filter(([client, clock]) => Y.getState(doc.store, client) > clock);
  writeVarUint(encoder.restEncoder, missing.length);
  // Yjs integrates faster if the higher client ids come first.
  for (const [client, clock] of missing.sort((a, b) => b[0] - a[0])) writeStructs(encoder, doc, client, clock, until);
  writeDeletes(encoder, deletes);
  return encoder.toUint8Array();
}

/**
 * @param {Y.UpdateEncoderV1} encoder
 * @param {Y.Doc} doc
 * @param {number} client
 * @param {number} clock
 * @param {number} until
 */
function writeStructs(encoder, doc, client, clock, until) {
  const structs = structsOf(doc, client);
  const first = Y.findIndexSS(structs, clock);
  const end = until < Y.getState(doc.store, client) ? Y.findIndexSS(structs, until) : structs.length;
  writeVarUint(encoder.restEncoder, end - first);
  encoder.writeClient(client);
  writeVarUint(encoder.restEncoder, clock);
  structs[first].write(encoder, clock - structs[first].id.clock);
  for (let at = first + 1; at < end; at++) structs[at].write(encoder, 0);
}

/** @param {Y.UpdateEncoderV1} encoder @param {DeleteSet[]} deletes */
function writeDeletes(encoder, deletes) {
  const { clients } = Y.mergeDeleteSets(deletes);
  writeVarUint(encoder.restEncoder, clients.size);
  for (const [client, ranges] of [...clients].sort((a, b) => b[0] - a[0])) {
    encoder.resetDsCurVal();
    writeVarUint(encoder.restEncoder, client);
    writeVarUint(encoder.restEncoder, ranges.length);
    for (const { clock, len } of ranges) {
      encoder.writeDsClock(clock);
      encoder.writeDsLen(len);
    }
  }
}

/**
 * What a document has and the service lacks.
 * @param {Y.Doc} doc in which all that the service has was applied
 * @param {Uint8Array} stateVector of the service
 * @param {DeleteSet} deleted all deletions that the service has
 * @returns {Lack}
 */
export function difference(doc, stateVector, deleted) {
  const stored = Y.decodeStateVector(stateVector);
  /** @type {Map<number, number>} */
  const from = new Map();
  for (const client of doc.store.clients.keys()) {
    const clock = stored.get(client) ?? 0;
    if (Y.getState(doc.store, client) > clock) from.set(client, clock);
  }
  const own = Y.createDeleteSetFromStructStore(doc.store);
  return { from, deletes: Y.equalDeleteSets(own, deleted) ? [] : [own] };
}

/** @param {Uint8Array} bytes @returns {string} */
export function toBase64(bytes) {
  let characters = "";
  for (let at = 0; at < bytes.length; at += PIECE) characters += String.fromCharCode(...bytes.subarray(at, at + PIECE));
  return btoa(characters);
}

/** @param {string} text @returns {Uint8Array} */
export function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}
