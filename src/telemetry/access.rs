//! The access log's line, made by the shard that served the exchange: into a chunk of memory that control writes out.
//! Never waits: when control is behind and no chunk is free, the line is dropped and counted.
