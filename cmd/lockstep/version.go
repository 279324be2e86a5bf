package main

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersion(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which source this program was built from, and by which compiler",
		Args:  wantArgs(),
		RunE: func(*cobra.Command, []string) error {
			info, _ := debug.ReadBuildInfo() // nil in a program that was built without modules: then nothing is known
			fmt.Fprintln(env.stdout, versionText(info))
			return nil
		},
	}
}

// versionText is what a program knows of its own origin: the version control stamps it at `go build`.
func versionText(info *debug.BuildInfo) string {
	if info == nil {
		return "lockstep, of unknown origin"
	}
	set := map[string]string{}
	for _, s := range info.Settings {
		set[s.Key] = s.Value
	}
	text := "lockstep " + info.Main.Version
	if rev := set["vcs.revision"]; rev != "" {
		text += fmt.Sprintf(", revision %.12s of %s", rev, set["vcs.time"])
		if set["vcs.modified"] == "true" {
			text += ", modified"
		}
	}
	return fmt.Sprintf("%s, %s %s/%s", text, info.GoVersion, set["GOOS"], set["GOARCH"])
}
