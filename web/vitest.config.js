/**
 * Two kinds of tests. "unit" needs nothing but Node.js. "browser" runs the client in Chromium against a nats-server.
 * The tests of the client and the console against a whole platform are in tests/platform/.
 */
import { fileURLToPath } from "node:url";
import { playwright } from "@vitest/browser-playwright";
import { defineConfig } from "vitest/config";

/** The path of a file, given from here. A URL's own `pathname` would have %20 for a space. */
const path = (file) => fileURLToPath(new URL(file, import.meta.url));

/** In milliseconds, of one test: far more than any needs, since other tests may keep the machine busy. */
const PATIENCE = 60_000;

export default defineConfig({
  test: {
    projects: [
      {
        resolve: {
          alias: {
            "@natskit/client/document": path("client/src/document.js"),
            "@natskit/client": path("client/src/natskit.js"),
          },
        },
        test: { name: "unit", include: ["*/tests/*.test.js"], testTimeout: PATIENCE },
      },
      {
        // Bundled before the tests: found while they run, it would make Vite reload their page.
        optimizeDeps: { include: ["@nats-io/nats-core"] },
        test: {
          name: "browser",
          include: ["client/tests/browser/*.test.js"],
          globalSetup: "client/tests/browser/nats-server.js",
          testTimeout: PATIENCE,
          browser: {
            enabled: true,
            connectTimeout: 2 * PATIENCE,
            headless: true,
            screenshotFailures: false,
            instances: [{ browser: "chromium" }],
            // It keeps its connections when the machines in Docker come and go.
            provider: playwright({ launchOptions: { executablePath: path("../tests/kit/chromium.py") } }),
          },
        },
      },
    ],
  },
});
