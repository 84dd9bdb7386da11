"""Writes an online store with the real Feast; run by the python of .cache/feast: write.py FOLDER REDIS_HOST:PORT.

It prints, as JSON, what Feast itself reads back.
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String

folder, address = Path(sys.argv[1]), sys.argv[2]
pd.DataFrame({"user": [1], "at": [datetime.now(UTC)]}).to_parquet(folder / "nothing.parquet")
source = FileSource(path=str(folder / "nothing.parquet"), timestamp_field="at")
numbers = [
    Field(name="age", dtype=Int64),
    Field(name="small", dtype=Int32),
    Field(name="rate", dtype=Float32),
    Field(name="precise", dtype=Float64),
    Field(name="active", dtype=Bool),
    Field(name="vector", dtype=Array(Float32)),
    Field(name="doubles", dtype=Array(Float64)),
    Field(name="counts", dtype=Array(Int64)),
    Field(name="name", dtype=String),
]
user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
item = Entity(name="item", join_keys=["item"], value_type=ValueType.STRING)
users = FeatureView(
    name="user_stats", entities=[user], schema=[Field(name="user", dtype=Int64), *numbers], source=source
)
item_schema = [Field(name="item", dtype=String), Field(name="price", dtype=Float32)]
items = FeatureView(name="item_stats", entities=[item], schema=item_schema, source=source)
store = FeatureStore(
    config=RepoConfig(
        project="shop",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={"type": "redis", "connection_string": address},
        entity_key_serialization_version=3,
    )
)
store.apply([user, item, users, items])
now = datetime.now(UTC)
rows = {
    "user": [1, -2, 2**53],
    "age": [33, -1, 2**40],
    "small": [7, -7, 0],
    "rate": [0.5, -1.25, 0.0],
    "precise": [1e-9, -2.5, 0.0],
    "active": [True, False, True],
    "vector": [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [-1.5, 0.25, 9.0]],
    "doubles": [[0.1, 0.2], [0.0, -0.0], [3.0, 4.0]],
    "counts": [[1, -1], [0, 300], [2**40, 5]],
    "name": ["ann", "", "zoë"],
    "at": [now] * 3,
}
store.write_to_online_store("user_stats", df=pd.DataFrame(rows))
store.write_to_online_store("item_stats", df=pd.DataFrame({"item": ["a", "ö:1"], "price": [9.5, 0.0], "at": [now] * 2}))
wanted = [f"user_stats:{each.name}" for each in numbers]
told = store.get_online_features(features=wanted, entity_rows=[{"user": each} for each in rows["user"]]).to_dict()
priced = store.get_online_features(features=["item_stats:price"], entity_rows=[{"item": each} for each in ("a", "ö:1")])
print(json.dumps({"users": told, "items": priced.to_dict()}))
