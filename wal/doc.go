// Package wal is the write-ahead log of one replica: a ring of preallocated segments that holds frames of records.
package wal
