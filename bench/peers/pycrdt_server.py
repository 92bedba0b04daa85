"""pycrdt-websocket with its SQLite store: ``python pycrdt_server.py PORT DATABASE``. It has its own environment."""

from __future__ import annotations

import sys

import uvicorn
from pycrdt.store import SQLiteYStore
from pycrdt.websocket import ASGIServer, WebsocketServer, YRoom


class Store(SQLiteYStore):
    """All rooms are in one file."""

    db_path = sys.argv[2]


class Rooms(WebsocketServer):
    """Each room stores its updates."""

    async def get_room(self, name: str) -> YRoom:
        """The room with a name."""
        if name not in self.rooms:
            self.rooms[name] = YRoom(ready=self.rooms_ready, ystore=Store(name), log=self.log)
        return await super().get_room(name)


rooms = Rooms(auto_clean_rooms=False)
answer = ASGIServer(rooms)


async def app(scope: dict, receive: object, send: object) -> None:
    """Start and stop the rooms with the server."""
    if scope["type"] == "lifespan":
        await receive()
        async with rooms:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "websocket":
        await answer(scope, receive, send)


if __name__ == "__main__":
    # A client that leaves is an error to it, with a page of traceback.
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical", lifespan="on", ws="websockets-sansio"
    )
