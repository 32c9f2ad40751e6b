//! A client that others wrote: Debian's `python3-websockets`.

use std::process::Command;

use super::started;
use crate::support::app::Mode;

crate::support::in_both_modes!(a_python_client_runs);

/// Opens a socket as a browser does, with the key among the subprotocols.
const CLIENT: &str = r#"
import asyncio, json, sys
import websockets

async def main(url, key):
    async with websockets.connect(url, subprotocols=["prompt-manager.v1", key]) as socket:
        assert socket.subprotocol == "prompt-manager.v1", socket.subprotocol
        await (await socket.ping())
        for name in ["Ada", "Bob"]:
            await socket.send(json.dumps({"type": "run.create", "id": name, "promptName": "Greeting", "variables": {"name": name}}))
        outputs = {}
        while len(outputs) < 2:
            event = json.loads(await socket.recv())
            if event["type"] == "run.completed":
                outputs[event["id"]] = event["output"]
        await socket.send("nonsense")
        answer = json.loads(await socket.recv())
        print(outputs["Ada"], outputs["Bob"], answer["type"], answer["status"])
    print(socket.close_code)
    try:
        async with websockets.connect(url, subprotocols=["prompt-manager.v1", "sk_wrong"]):
            pass
    except Exception as error:
        print(type(error).__name__, "401" in str(error))

asyncio.run(main(*sys.argv[1:]))
"#;

async fn a_python_client_runs(mode: Mode) {
    // The package is for the system's own Python, whatever other one comes first.
    let python = ["/usr/bin/python3", "python3"].into_iter().find(|python| {
        let probe = Command::new(python).args(["-c", "import websockets"]).output();
        probe.is_ok_and(|output| output.status.success())
    });
    let Some(python) = python else {
        eprintln!("skipped: no Python on this machine has `websockets`");
        return;
    };
    let app = started(mode, "").await;
    let url = format!("{}/api/v1/ws", app.url().replace("http:", "ws:"));
    let mut command = Command::new(python);
    command.args(["-c", CLIENT, &url, &app.key()]).env("NO_PROXY", "*").env("no_proxy", "*");
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    let expect = "Greet Ada. Greet Bob. error 400\n1000\nInvalidStatusCode True\n";
    // Newer versions of the client call the error `InvalidStatus`.
    assert_eq!(said.replace("InvalidStatus ", "InvalidStatusCode "), expect, "{complaint}");
}
