package client

import (
	"context"
	"time"
)

// SetSleep replaces the waiting between retries.
func (c *Client) SetSleep(sleep func(context.Context, time.Duration) error) { c.sleep = sleep }
