// Azurite closes a connection after 5 idle seconds, and a request that comes at that very moment
// fails. Azure waits for minutes, and so does what is measured. (Azurite 3.37 has an option for it,
// --blobKeepAliveTimeout, but never reads it.) To be loaded with `node --require`.
"use strict";

const http = require("node:http");

const { createServer } = http;
http.createServer = (...args) =>
  Object.defineProperty(createServer(...args), "keepAliveTimeout", {
    get: () => 600_000,
    set: () => {}, // Azurite's own 5 seconds.
  });
